"""Densities in the plane, by an i-ResNet and by Glow's couplings, side by side (figure 5.2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.peers import Density, real_nvp
from experiments.flows.likelihood import losses_of, train_best
from experiments.flows.models import preset_flow
from iresflow import Flow
from iresflow.commands.report import Report
from iresflow.data import Dataset, load_dataset
from iresflow.errors import NonFiniteError
from iresflow.training import presets
from iresflow.training.config import Config, OptimizerName
from iresflow.training.sections import Section, section_of
from iresflow.training.values import read_yaml

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
    preset: str = "toy2d"
    """The configuration that gives our model, and the batch of both."""
    couplings: int = 20
    """Of Glow, which in the plane has no convolutions: couplings that take turns."""
    hidden: int = 64
    """Width of its networks."""
    minutes: float = 1.0
    """Of processor time, for each training."""
    rates: tuple[float, ...] = (1e-3, 1e-2)
    """Learning rates that are tried."""
    optimizers: tuple[OptimizerName, ...] = ("adam", "muon")
    """Optimisers that are tried."""


def quick(settings: Settings) -> Settings:
    """Within a minute."""
    few = {"rates": settings.rates[:1], "optimizers": settings.optimizers[:1]}
    return replace(settings, densities=settings.densities[:2], minutes=0.05, **few)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Runs the experiment. Errors: as those of training."""
    config = section_of(Config, read_yaml(presets.find(settings.preset)))
    rows: list[dict[str, Any]] = []
    panels: list[tuple[str, Tensor, Flow | Density, Flow | Density]] = []
    for name in settings.densities:
        points = load_dataset(name, seed=settings.seed)
        makers: dict[str, Callable[[], Flow | Density]] = {
            "Glow": lambda: real_nvp(settings.couplings, settings.hidden),
            "i-ResNet": partial(preset_flow, config, points),
        }
        models: dict[str, Flow | Density] = {}
        row: dict[str, Any] = {"density": name}
        for kind, make in makers.items():
            best = train_best(
                f"{name} {kind}",
                make,
                points,
                report.path,
                settings,
                config.training.batch_size,
            )
            if best is None:
                raise NonFiniteError(f"{name}: no training of {kind} ended")
            models[kind] = best.model
            losses = losses_of(best.model, points, points.test).double()
            row |= {
                f"{kind}, nats": float(losses.mean()),
                f"{kind}, standard error": float(losses.std() / len(losses) ** 0.5),
                f"{kind}, training": f"{best.optimizer}, rate {best.rate:g}",
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
