"""Arrays in, pictures out."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid, save_image

__all__ = ["density_figure", "image_grid", "save_figure", "save_grid", "scatter_figure"]


def image_grid(images: Tensor, columns: int | None = None, border: int = 1) -> Tensor:
    """A grid ``(C, H', W')`` of images ``(N, C, H, W)`` in [0, 1], about as wide as high."""
    columns = columns or int(np.ceil(len(images) ** 0.5))
    return make_grid(images.clamp(0, 1), nrow=columns, padding=border, pad_value=0.5)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Writes a grid of images ``(N, C, H, W)`` in [0, 1] as PNG, small ones magnified."""
    grid = image_grid(images.detach().cpu().float(), columns)
    # Pictures of 8 x 8 pixels can't be looked at: whole-number magnification to about 32.
    factor = max(1, round(32 / images.shape[-1]))
    grid = grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    save_image(grid, path)


def scatter_figure(points: np.ndarray, title: str = "") -> Figure:
    """A scatter plot of the first two columns of points ``(N, D)``."""
    figure = Figure(figsize=(5, 5), layout="tight")
    axes = figure.subplots()
    axes.scatter(points[:, 0], points[:, -1 if points.shape[1] == 1 else 1], s=2, alpha=0.5)
    axes.set_aspect("equal", "datalim")
    axes.set_title(title)
    return figure


def density_figure(
    density: np.ndarray, extent: tuple[float, float, float, float], samples: np.ndarray
) -> Figure:
    """A density ``(rows, columns)`` on the plane beside samples ``(N, 2)`` of it.

    Arguments:
        density: Values on a grid, the first row at the smallest y.
        extent: (x0, x1, y0, y1) of the grid.
        samples: Points.
    """
    figure = Figure(figsize=(9, 4.5), layout="tight")
    left, right = figure.subplots(1, 2)
    left.imshow(
        density, origin="lower", extent=extent, aspect="auto", cmap=matplotlib.colormaps["viridis"]
    )
    left.set_title("density")
    right.scatter(samples[:, 0], samples[:, 1], s=2, alpha=0.5)
    right.set_xlim(extent[:2])
    right.set_ylim(extent[2:])
    right.set_title("samples")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=120)
