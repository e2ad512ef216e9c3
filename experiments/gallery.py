"""The pictures of the documentation's gallery, drawn from runs.

    python experiments/gallery.py --plane RUN ... --images RUN --out docs/gallery
    python experiments/gallery.py --pretrained [NAME ...]

The runs are those of ``train.py`` on a 2-D density and on images. Each run on the plane gives a
row of panels in a file of its own name; the first of them and the images give ``cover.png``.
``--pretrained`` draws samples of each model that travels with the package.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.nn.functional import pad

import iresflow
from iresflow.models import Flow, ImageFlow, pretrained
from iresflow.training.checkpoint import find_checkpoint, load_model
from iresflow.training.runs.known_data import load_data

__all__ = ["cover", "main", "plane", "temperatures"]

POINTS = 3000
"""Points of a scatter plot."""

CELLS = 200
"""Cells of a density's grid, on each side."""

LINES = 25
"""Lines of the grid that is mapped, each way."""

ALONG = 3000
"""Points of a line: between modes a map stretches a hundred times and more."""

TEMPERATURES = (0.7, 1.0)
"""At which packaged models are sampled; 1 is the model."""

DPI = 110


def plane(flow: Flow, data: torch.Tensor) -> Figure:
    """Data, density, samples, and what the flow makes of a grid of lines, side by side.

    Arguments:
        flow: On vectors of two dimensions, in eval mode.
        data: Points ``(N, 2)``.
    """
    figure = Figure(figsize=(11, 2.9), layout="constrained", dpi=DPI)
    axes = figure.subplots(1, 4)
    limit = _limit(data)
    _scatter(axes[0], data, limit, "data")
    _density(axes[1], flow, limit)
    _scatter(axes[2], flow.sample(POINTS, generator=_stream()), limit, "samples")
    _grid(axes[3], flow, limit)
    return figure


def cover(flow: Flow, data: torch.Tensor, images: ImageFlow, *, side: int = 10) -> Figure:
    """Data and density of the plane beside samples of a flow of images.

    Arguments:
        flow, data: As of `plane`.
        images: The other flow, in eval mode; if it is conditional on classes, each column has one.
        side: Samples in a row and in a column.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained", dpi=DPI)
    axes = figure.subplots(1, 3)
    limit, conditional = _limit(data), bool(images.context_dim)
    _scatter(axes[0], data, limit, "data in the plane")
    _density(axes[1], flow, limit, "its density, learned")
    columns = torch.arange(side * side) % side
    classes = torch.eye(images.context_dim)[columns] if conditional else None
    x = images.sample(side * side, classes, temperature=0.8, generator=_stream())
    _tiles(axes[2], x, side)
    _bare(axes[2], "samples of images, one class a column" if conditional else "samples of images")
    return figure


def temperatures(flow: Flow, *, side: int = 10) -> Figure:
    """Samples of a flow at each of the temperatures, from the same latents but for their scale.

    Arguments:
        flow: In eval mode, of images or of the plane.
        side: Images in a row and in a column.
    """
    figure = Figure(figsize=(6.4, 3.4), layout="constrained", dpi=DPI)
    for axes, temperature in zip(figure.subplots(1, 2), TEMPERATURES, strict=True):
        title = f"temperature {temperature:g}"
        if isinstance(flow, ImageFlow):
            x = flow.sample(side * side, temperature=temperature, generator=_stream()).clamp(0, 1)
            _tiles(axes, pad(x, (1, 1, 1, 1), value=0.5), side)
            _bare(axes, title)
        else:
            points = flow.sample(POINTS, temperature=temperature, generator=_stream())
            _scatter(axes, points, _limit(points), title)
    return figure


def main() -> None:
    """Draws all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plane", nargs="+", default=[], help="runs on 2-D densities")
    parser.add_argument("--images", help="run on images, for the cover")
    parser.add_argument("--pretrained", nargs="*", help="draw these packaged models, or all")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for index, run in enumerate(options.plane):
        flow, dataset = _flow(run), load_data(run)
        data = dataset.test.values[:POINTS]
        _save(plane(flow, data), options.out / f"{dataset.name}.png")
        if index == 0 and options.images:
            _save(cover(flow, data, _flow(options.images)), options.out / "cover.png")
    drawn = [] if options.pretrained is None else options.pretrained or pretrained.names()
    for name in drawn:
        model = iresflow.pretrained(name)
        assert isinstance(model, Flow)
        _save(temperatures(model), options.out / f"pretrained-{name}.png")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", pad_inches=0.05)


def _flow(run: str) -> Flow:
    model, _ = load_model(find_checkpoint(run, "best"), torch.device("cpu"))
    return model


def _limit(data: torch.Tensor) -> float:
    return 1.15 * float(data.abs().quantile(0.999))


def _tiles(axes: Axes, x: torch.Tensor, side: int) -> None:
    """Images ``(side^2, C, H, W)`` side by side, the first ones in the uppermost row."""
    rows = x.clamp(0, 1).unflatten(0, (side, side)).permute(0, 3, 1, 4, 2)
    axes.imshow(rows.flatten(0, 1).flatten(1, 2).numpy(), cmap="gray", vmin=0, vmax=1)


def _scatter(axes: Axes, points: torch.Tensor, limit: float, title: str) -> None:
    axes.scatter(*points.numpy().T, s=1.5, alpha=0.5, linewidths=0, color="#274b8f")
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.set_aspect("equal")
    _bare(axes, title)


@torch.no_grad()
def _density(axes: Axes, flow: Flow, limit: float, title: str = "learned density") -> None:
    line = torch.linspace(-limit, limit, CELLS)
    points = torch.cartesian_prod(line, line)
    density = torch.cat([flow.log_prob(part) for part in points.split(5000)]).exp()
    image = density.view(CELLS, CELLS).T
    axes.imshow(image.numpy(), origin="lower", extent=(-limit, limit, -limit, limit), cmap="magma")
    _bare(axes, title)


@torch.no_grad()
def _grid(axes: Axes, flow: Flow, limit: float) -> None:
    """Where lines of the latent plane come from: the inverse of a grid."""
    along, across = torch.linspace(-2.5, 2.5, ALONG), torch.linspace(-2.5, 2.5, LINES)
    for fixed in across:
        constant = torch.full_like(along, float(fixed))
        for line, color in ((along, constant), "#274b8f"), ((constant, along), "#c2571a"):
            x = flow.inverse(torch.stack(line, 1))
            axes.plot(*np.asarray(x).T, color=color, linewidth=0.5)
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.set_aspect("equal")
    _bare(axes, "a grid of latents, mapped back")


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def _stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


if __name__ == "__main__":
    main()
