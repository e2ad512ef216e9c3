"""The figures of the experiment on learned operators."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["draw_curves", "draw_images"]


def draw_curves(
    limits: Sequence[float],
    noises: Sequence[float],
    curves: Mapping[str, Sequence[Sequence[float]]],
    classical: Mapping[str, Sequence[float]],
) -> Figure:
    """Errors against noise: a panel for each kind of map with a line for each limit, and the rule.

    Arguments:
        limits: L.
        noises: Of the columns of the curves; the i-th is that of the i-th limit by the rule.
        curves: By kind of map, rows of errors, one a limit.
        classical: By name, errors with the best parameter.
    """
    figure = Figure(figsize=(3.6 * (len(curves) + 1), 3.8), layout="constrained")
    *panels, last = figure.subplots(1, len(curves) + 1, sharey=True)
    for axes, (kind, table) in zip(panels, curves.items(), strict=True):
        for index, (limit, errors) in enumerate(zip(limits, table, strict=True)):
            shade = 0.15 + 0.75 * index / max(1, len(limits) - 1)
            axes.loglog(
                noises, errors, ".-", color=(shade, 0.3, 1 - shade), label=f"L = {limit:g}"
            )
            axes.plot(noises[index], errors[index], "ko", mfc="none")
        axes.set_title(kind, fontsize=11)
        axes.legend(fontsize=7)
    for kind, table in curves.items():
        last.loglog(noises, [row[i] for i, row in enumerate(table)], ".-", label=kind)
    for place, (name, errors) in enumerate(classical.items()):
        style = ("--", ":", "-.")[place % 3]
        last.loglog(noises, errors, style, color="0.3", lw=1.2, label=f"{name}, best")
    last.set_title("1 - L = square root of the noise", fontsize=11)
    last.legend(fontsize=7)
    for axes in (*panels, last):
        axes.set_xlabel("relative noise")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean relative error")
    return figure


def draw_images(rows: Mapping[str, Tensor]) -> Figure:
    """Rows of images ``(N, C, H, W)`` in [0, 1], with their names."""
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(0.9 * count, 1.15 * len(rows)), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        picture = torch.cat(list(row.detach().double().clamp(0, 1)), dim=2).permute(1, 2, 0)
        axes.imshow(picture.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(name, fontsize=8, loc="left", pad=2)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
