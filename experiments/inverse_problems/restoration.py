"""Denoising, inpainting, deblurring and superresolution by the most probable image, with flows of
images and of patches, beside total variation, plain inversion, and deepinv's PatchNR."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from experiments.inverse_problems.comparisons import Measured
from experiments.inverse_problems.flows import (
    SIDE,
    image_flow,
    in_unit_range,
    patch_flow,
    random_patches,
)
from experiments.inverse_problems.priors import (
    PatchNR,
    TotalVariation,
    train_patchnr,
)
from experiments.inverse_problems.problems import Problem, picture, problems, psnr
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.errors import MissingLibraryError
from iresflow.inverse_problems import (
    Domain,
    FlowPrior,
    PatchPrior,
    Potential,
    ProjectedQuasiNewton,
    map_estimate,
)
from iresflow.inverse_problems.estimation import first_guess
from iresflow.logdet import DifferentiableSeries
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, object]] = {"images": {"name": "mnist"}}

ROUGH = ProjectedQuasiNewton(iterations=60)
"""How total variation's weight is tried."""

COLUMNS = (
    "PSNR",
    "standard error",
    "misfit",
    "criterion",
    "evaluations",
    "process seconds an image",
)
"""Of the table, after problem and method."""


@dataclass(kw_only=True)
class Settings(Section):
    """Restoration."""

    seed: int = 0
    """Seed of weights, order, patches, masks and noise."""
    blocks: tuple[int, ...] = (0, 6, 4)
    """Residual blocks of the flow of images, on each scale."""
    hidden: int = 64
    """Channels in their branches."""
    levels: int = 16
    """Grey levels that this flow is trained on: fewer make a smoother density."""
    steps: int = 2500
    """Of its training."""
    patches: int = 200_000
    """Patches that the flows of patches see."""
    deviation: float = 0.02
    """Deviation of the noise in these, in images in [0, 1]."""
    patch_blocks: int = 8
    """Residual blocks of the flow of patches."""
    patch_steps: int = 3000
    """Of its training."""
    patchnr_steps: int = 6000
    """Of the training of PatchNR."""
    stride: int = 3
    """Pixels between neighbouring patches of an image to restore."""
    terms: int = 5
    """Terms of the series of log-determinants in a search."""
    problems: tuple[str, ...] = ("denoising", "inpainting", "deblurring", "superresolution")
    """Which of the problems."""
    test: int = 6
    """Test images."""
    latent: int = 2
    """Of these, so many are searched in the latent as well."""
    starts: bool = False
    """Whether searches with the flow of patches begin at other images as well."""
    noise: float = 0.1
    """Deviation of the noise in measurements; three times as much to denoise."""
    iterations: int = 250
    """Steps of a search at most."""

    def _check(self) -> None:
        if unknown := set(self.problems) - set(problems((1, 8, 8), 1.0, 0)):
            raise ValueError(f"unknown problem {unknown.pop()!r}")


def quick(settings: Settings) -> Settings:
    return replace(
        settings,
        blocks=(0, 1, 1),
        hidden=8,
        steps=20,
        patches=2000,
        patch_blocks=2,
        patch_steps=20,
        patchnr_steps=20,
        stride=6,
        terms=2,
        test=2,
        latent=1,
        iterations=5,
    )


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Trains the flows, and restores test images by each prior."""
    dataset = data["images"]
    truth = in_unit_range(dataset.test.values[: settings.test], dataset)
    priors = _priors(settings, dataset, report)
    descent = ProjectedQuasiNewton(iterations=settings.iterations)
    rows: list[dict[str, Any]] = []
    known = problems(dataset.shape, settings.noise, settings.seed)
    starts: list[dict[str, Any]] = []
    for name in settings.problems:
        measured = Measured(known[name], truth, settings.seed + 1)
        guess = first_guess(known[name].operator, measured.y, TotalVariation(1.0))
        shown = {"truth": truth, "plain inversion": guess}
        rows.append(_row(name, "plain inversion", measured.row(guess)))
        weight = _best_weight(known[name], in_unit_range(dataset.train.values[:4], dataset))
        for method, prior in {"total variation": TotalVariation(weight), **priors}.items():
            began = process_time()
            found = measured.estimate(prior, descent, start=guess)
            took = (process_time() - began) / len(truth)
            shown[method] = found.images
            ended = measured.full_row(found) | {"process seconds an image": took}
            rows.append(_row(name, method, ended))
            print(f"{name}, {method}: {rows[-1]['PSNR']:.2f} dB", flush=True)
        report.table("restoration", rows, _caption(dataset, settings))
        report.figure(name, picture(shown), f"{name}: from the truth to all methods")
        if settings.starts:
            begin = {n: shown[n] for n in ("plain inversion", "total variation", "truth")}
            found_rows = measured.from_starts(priors["flow of patches"], descent, begin)
            starts += [{"problem": name, **row} for row in found_rows]
            report.table("starts", starts, "Searches with the flow of patches from other images.")
    if settings.latent:
        problem = known["superresolution"]
        part = Measured(problem, truth[: settings.latent], settings.seed + 1)
        found_rows, shown = part.in_latents(priors["flow of images"], descent)
        caption = f"Superresolution of {len(part.truth)} images, both searches."
        report.table("latents", found_rows, caption)
        report.figure("latents", picture(shown), "The most probable images and latents")


def _priors(settings: Settings, dataset: Dataset, report: Report) -> dict[str, Potential]:
    """The priors that are learned, and what they make of new images and patches."""
    series = DifferentiableSeries(settings.terms)
    whole = image_flow(
        dataset,
        report.path / "image-flow",
        blocks=settings.blocks,
        hidden=settings.hidden,
        levels=settings.levels,
        steps=settings.steps,
        seed=settings.seed,
    )
    images = in_unit_range(dataset.train.values[:2000], dataset)
    drawn = random_patches(images, settings.patches, settings.deviation, settings.seed)
    patches = patch_flow(
        drawn,
        report.path / "patch-flow",
        blocks=settings.patch_blocks,
        hidden=128,
        steps=settings.patch_steps,
        seed=settings.seed,
    )
    size = (dataset.shape[0], SIDE, SIDE)
    unit = Domain(0.0, 1.0)
    ours = PatchPrior(
        FlowPrior(patches, domain=unit, log_det=series), size, stride=settings.stride
    )
    found: dict[str, Potential] = {
        "flow of images": FlowPrior(whole, log_det=series),
        "flow of patches": ours,
    }
    test = in_unit_range(dataset.test.values[:500], dataset)
    unseen = random_patches(test, 2000, settings.deviation, settings.seed + 1)
    with torch.no_grad():
        scores = {"flow of patches": float(-patches.log_prob(unseen).mean())}
    try:
        theirs = _patchnr(settings, drawn, report.path / "patchnr.pt", dataset.shape[0])
    except MissingLibraryError as error:
        print(f"without PatchNR: {error}", flush=True)
    else:
        found["PatchNR"] = PatchNR(theirs, ours)
        constant = unseen.shape[1] / 2 * math.log(2 * math.pi)
        with torch.no_grad():
            scores["PatchNR"] = float(theirs.fn(unseen[None]).mean()) + constant
    report.numbers("patches", scores, "Nats of 2000 patches of test images, less is better.")
    return found


def _patchnr(settings: Settings, patches: Tensor, file: Path, channels: int) -> Any:  # noqa: ANN401
    steps = 0 if file.is_file() else settings.patchnr_steps
    theirs = train_patchnr(patches, channels, SIDE, steps, settings.seed)
    if file.is_file():
        theirs.load_state_dict(torch.load(file, weights_only=True))
    else:
        torch.save(theirs.state_dict(), file)
    return theirs


def _best_weight(problem: Problem, truth: Tensor) -> float:
    """The weight of total variation that restores some training images best."""
    generator = torch.Generator().manual_seed(7)
    clean = problem.operator(truth)
    y = clean + problem.noise * torch.randn(clean.shape, generator=generator)
    weights = [2.0**k for k in range(1, 10)]
    scores = [
        float(
            psnr(
                map_estimate(
                    problem.operator, y, TotalVariation(weight), problem.noise, descent=ROUGH
                ).images,
                truth,
            ).mean()
        )
        for weight in weights
    ]
    return weights[scores.index(max(scores))]


def _row(problem: str, method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table, without what plain inversion has none of."""
    return {"problem": problem, "method": method} | {name: values.get(name) for name in COLUMNS}


def _caption(dataset: Dataset, settings: Settings) -> str:
    return (
        f"{dataset.name}, {settings.test} test images: decibels, the misfit in units of the "
        f"noise, the largest criterion after {settings.iterations} steps at most."
    )
