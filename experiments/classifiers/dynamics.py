"""Paths of points through a standard and an invertible residual network in one dimension
(thesis, figure 4.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.classifiers.training import train_once
from iresflow.bijections import ResidualBlock
from iresflow.commands.report import Report
from iresflow.lipschitz import ELU, Bidiagonalization, Unlimited, dense_branch
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Score, Terms

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Settings:
    """Dynamics."""

    seed: int = 0
    """Seed of weights and order."""
    blocks: int = 10
    """Residual blocks."""
    hidden: int = 32
    """Units in the branches."""
    coeff: float = 0.9
    """Limit of each layer's norm in the invertible network."""
    steps: int = 3000
    """Of training."""
    paths: int = 61
    """Points whose paths are drawn."""


def quick(settings: Settings) -> Settings:
    return replace(settings, steps=400)


@final
class _Paths(nn.Module):
    """Residual blocks on the line, one after another."""

    def __init__(self, settings: Settings, *, limited: bool) -> None:
        super().__init__()
        limit = Bidiagonalization() if limited else Unlimited()
        self.blocks = nn.ModuleList(
            ResidualBlock(
                dense_branch(
                    1,
                    settings.hidden,
                    activation=ELU,
                    coeff=settings.coeff,
                    normalization=limit,
                    activate_input=False,
                )
            )
            for _ in range(settings.blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.path(x)[-1]

    def path(self, x: Tensor) -> list[Tensor]:
        """x after no block, after one, and so on, ``(B, 1)`` each."""
        points = [x]
        for block in self.blocks:
            points.append(block.transform(points[-1]))
        return points


@final
class _Squares(Objective):
    """The mean squared difference from targets ``(B, 1)``."""

    def unit(self, model: nn.Module) -> str:
        return "squares"

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        assert batch.labels is not None
        return Terms(F.mse_loss(model(batch.values), batch.labels))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        assert split.labels is not None
        return Score(float(F.mse_loss(model(split.values), split.labels)))


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Trains both to fit a wave, which no increasing map is, and follows points through them."""
    x = torch.linspace(-2, 2, 401)[:, None]
    target = torch.sin(2 * x)
    starts = torch.linspace(-2, 2, settings.paths)[:, None]
    rows, paths = [], {}
    for name, limited in (("standard", False), ("invertible", True)):
        torch.manual_seed(settings.seed)
        network = _Paths(settings, limited=limited)
        train_once(
            network,
            Batch(x, target),
            Batch(x, target),
            report.path / name,
            objective=_Squares(),
            seed=settings.seed,
            steps=settings.steps,
            batch_size=64,
            learning_rate=3e-3,
            log_every=settings.steps // 5,
        )
        network.double()
        with torch.no_grad():
            bounds = [block.branch.bound().upper for block in network.blocks]
            points = torch.stack(network.path(starts.double()))[..., 0].numpy()
            error = float(F.mse_loss(network(x.double()), target.double()))
        paths[name] = points
        gaps = np.diff(points, axis=1)
        rows.append(
            {
                "network": name,
                "mean squared error": error,
                "largest bound of a block": max(bounds),
                "neighbours that cross, at any depth": int((gaps <= 0).any(0).sum()),
                "of": settings.paths - 1,
                "smallest gap of neighbours at the end": float(gaps[-1].min()),
                "certified lower bound of that": float(
                    np.prod([1 - bound for bound in bounds]) * (starts[1] - starts[0]).item()
                )
                if max(bounds) < 1
                else None,
            }
        )
    report.table(
        "dynamics",
        rows,
        "Two residual networks with one architecture, trained to fit sin(2 x). Increasing maps "
        "can't; paths of the invertible one never cross.",
    )
    report.figure("dynamics", _figure(paths), "Paths through both networks (figure 4.1)")


def _figure(paths: Mapping[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 2), paths.items(), strict=True):
        depth = np.arange(len(points))
        axes.plot(points, depth, color="tab:blue", lw=0.7)
        crossed = np.diff(points, axis=1) <= 0
        for (low, row), (high, next_row) in pairwise(enumerate(crossed)):
            for column in np.flatnonzero(~row & next_row):
                place = points[[low, high]][:, [column, column + 1]].mean()
                axes.plot(place, (low + high) / 2, "o", mfc="none", color="tab:red", ms=7)
        axes.set_title(f"{name} residual network", fontsize=11)
        axes.set_xlabel("x")
        axes.set_ylabel("blocks passed")
    return figure
