"""One search in other coordinates, and from other images: how much depends on either."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from experiments.inverse_problems.problems import Problem, psnr
from iresflow.inverse_problems import MapEstimate, Potential, ProjectedQuasiNewton, map_estimate

__all__ = ["Measured"]


@final
class Measured:
    """Images that are measured, and searched for.

    Arguments:
        problem: What is measured of them.
        truth: ``(B, C, H, W)`` in [0, 1].
        seed: Of the noise.
    """

    def __init__(self, problem: Problem, truth: Tensor, seed: int) -> None:
        self.problem, self.truth = problem, truth
        clean = problem.operator(truth)
        generator = torch.Generator().manual_seed(seed)
        self.y = clean + problem.noise * torch.randn(clean.shape, generator=generator)

    def estimate(
        self,
        prior: Potential,
        descent: ProjectedQuasiNewton,
        *,
        where: str = "image",
        start: Tensor | None = None,
    ) -> MapEstimate:
        """The most probable images or latents."""
        operator, noise = self.problem.operator, self.problem.noise
        return map_estimate(operator, self.y, prior, noise, where, start=start, descent=descent)

    def row(self, found: Tensor) -> dict[str, Any]:
        """How well images are restored: decibels in the mean, and their standard error."""
        decibels = psnr(found, self.truth)
        spread = float(decibels.std()) / len(decibels) ** 0.5 if len(decibels) > 1 else None
        return {"PSNR": float(decibels.mean()), "standard error": spread}

    def full_row(self, found: MapEstimate) -> dict[str, Any]:
        """The same of a search, with where it ended and what it took."""
        return self.row(found.images) | {
            "objective": float(found.objective.mean()),
            "misfit": float(found.misfit.mean()),
            "criterion": float(found.criterion.max()),
            "evaluations": float(found.evaluations.double().mean()),
        }

    def in_latents(
        self, prior: Potential, descent: ProjectedQuasiNewton
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The most probable latents beside the most probable images: rows, and the images."""
        found = {w: self.estimate(prior, descent, where=w) for w in ("image", "latent")}
        rows = [{"where": where, **self.full_row(one)} for where, one in found.items()]
        return rows, {"truth": self.truth} | {w: one.images for w, one in found.items()}

    def from_starts(
        self, prior: Potential, descent: ProjectedQuasiNewton, starts: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Searches that begin at other images: local minima, and how good they are."""
        found = {s: self.estimate(prior, descent, start=x) for s, x in starts.items()}
        return [{"start": start, **self.full_row(one)} for start, one in found.items()]
