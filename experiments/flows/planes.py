"""Densities in the plane, by an i-ResNet and by Glow's couplings, side by side (figure 5.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.peers import Density, real_nvp
from experiments.flows.likelihood import losses_of, train_density
from iresflow import Flow, VectorFlow
from iresflow.commands.report import Report
from iresflow.data import Dataset, load_dataset
from iresflow.errors import NonFiniteError
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, Any]] = {}

CELLS = 200
"""Cells of a density's grid, on each side."""

SHOWN = 3000
"""Points of data that are drawn."""


@dataclass(kw_only=True)
class Settings(Section):
    """Planes."""

    seed: int = 0
    """Seed of data, weights and batches."""
    densities: tuple[str, ...] = ("eight-gaussians", "checkerboard", "pinwheel")
    """Names of densities in the plane."""
    blocks: int = 20
    """Residual blocks of ours."""
    hidden: int = 64
    """Width inside of its branches, and of Glow's networks."""
    couplings: int = 20
    """Of Glow, which in the plane has no convolutions: couplings that take turns."""
    minutes: float = 3.0
    """Of processor time, for each training."""
    batch_size: int = 500
    """Points in a step."""


def quick(settings: Settings) -> Settings:
    """Within a minute."""
    return replace(settings, densities=settings.densities[:2], minutes=0.05)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Runs the experiment. Errors: as those of training."""
    rows: list[dict[str, Any]] = []
    panels: list[tuple[str, Tensor, Flow | Density, Flow | Density]] = []
    for name in settings.densities:
        points = load_dataset(name, seed=settings.seed)
        models: dict[str, Flow | Density] = {}
        row: dict[str, Any] = {"density": name}
        for kind, rate in (("Glow", 1e-3), ("i-ResNet", 1e-2)):
            torch.manual_seed(settings.seed)
            models[kind] = (
                VectorFlow(2, settings.blocks, settings.hidden, activation="sine-cosine")
                if kind == "i-ResNet"
                else real_nvp(settings.couplings, settings.hidden)
            )
            try:
                train_density(
                    models[kind],
                    points,
                    report.path / f"{name}-{kind}",
                    minutes=settings.minutes,
                    batch_size=settings.batch_size,
                    learning_rate=rate,
                    seed=settings.seed,
                )
            except NonFiniteError as error:  # it leaves the best weights so far
                print(f"{name}, {kind}: {error}", flush=True)
            losses = losses_of(models[kind], points, points.test).double()
            row |= {
                f"{kind}, nats": float(losses.mean()),
                f"{kind}, standard error": float(losses.std() / len(losses) ** 0.5),
            }
        rows.append(row)
        panels.append((name, points.test.values[:SHOWN], models["Glow"], models["i-ResNet"]))
        report.table(
            "nats", rows, f"Test points, after {settings.minutes:g} minutes of processor time."
        )
    report.figure("figure-5-2", _figure(panels))


def _figure(panels: list[tuple[str, Tensor, Flow | Density, Flow | Density]]) -> Figure:
    figure = Figure(figsize=(7.5, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 3, squeeze=False)
    for row, (name, points, glow, ours) in zip(axes, panels, strict=True):
        limit = 1.15 * float(points.abs().quantile(0.999))
        row[0].scatter(*points.T.numpy(), s=1, linewidths=0, color="C0")
        _bare(row[0], limit, f"{name}, data")
        highest = 0.0
        for ax, model, title in ((row[1], glow, "Glow"), (row[2], ours, "i-ResNet")):
            image = _density(ax, model, limit)
            highest = max(highest, float(image.quantile(0.999)))
            _bare(ax, limit, title)
        for ax in row[1:]:
            ax.images[0].set_clim(0, highest)  # one scale for both
    return figure


@torch.no_grad()
def _density(axes: Axes, model: Flow | Density, limit: float) -> Tensor:
    line = torch.linspace(-limit, limit, CELLS)
    grid = torch.cartesian_prod(line, line)
    values = torch.cat([model.log_prob(part) for part in grid.split(10_000)]).exp()
    image = values.view(CELLS, CELLS).T
    axes.imshow(image.numpy(), extent=(-limit, limit, -limit, limit), origin="lower")
    return image


def _bare(axes: Axes, limit: float, title: str) -> None:
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    axes.set_xticks([])
    axes.set_yticks([])
