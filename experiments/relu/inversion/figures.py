"""The figures of `experiments.relu.inversion`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["noise_figure", "picture_figure"]

STYLES = (
    ("tab:blue", "o", "-"),
    ("tab:orange", "s", "--"),
    ("black", "^", "-."),
    ("tab:red", "v", ":"),
)
"""Colour, marker and line of each method: any one of them tells them apart."""


def noise_figure(
    noises: Sequence[float], curves: Mapping[str, Mapping[str, np.ndarray]]
) -> Figure:
    """Figure 5: errors against noise.

    Arguments:
        noises: ``(N,)``.
        curves: By panel and method, quartiles ``(N, 3)`` of relative errors.
    """
    rows = -(-len(curves) // 2)
    figure = Figure(figsize=(9, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, (title, methods) in zip(panels, curves.items(), strict=False):
        for i, (name, values) in enumerate(methods.items()):
            color, marker, line = STYLES[i % len(STYLES)]
            style = {"color": color, "marker": marker, "linestyle": line, "markersize": 4}
            axes.loglog(noises, values[:, 1], label=name if axes is panels[0] else None, **style)
            axes.fill_between(noises, values[:, 0], values[:, 2], color=color, alpha=0.12)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("half width or deviation of the noise")
        axes.set_ylabel("|z - z*| / |z*|")
        axes.grid(alpha=0.3)
    figure.legend(fontsize=9, loc="outside upper center", ncols=4)
    return figure


def picture_figure(rows: Mapping[str, Tensor], truth: Tensor, shape: Sequence[int]) -> Figure:
    """Pictures ``(B, n)`` in rows by name, each from the third row on with its error.

    Arguments:
        rows: The first is the truth, the second what was observed.
        truth: What errors are measured from, ``(B, n)``.
        shape: (C, H, W) of a picture.
    """
    count = len(truth)
    figure = Figure(figsize=(1.1 * count + 0.6, 1.25 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for i, (name, pictures) in enumerate(rows.items()):
        for j in range(count):
            axes = grid[i, j]
            axes.imshow(pictures[j].reshape(*shape).mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if i >= 2:
                error = float((pictures[j] - truth[j]).norm() / truth[j].norm())
                axes.set_xlabel(f"{100 * error:.1f} %", fontsize=8)
        grid[i, 0].set_ylabel(name, fontsize=9)
    figure.suptitle("Below each picture: its error over the norm of the truth", fontsize=9)
    return figure
