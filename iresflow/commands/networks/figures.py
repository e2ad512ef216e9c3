"""Figures of the report on an ordinary network."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iresflow.relu.stability.stage_spectra import StageSpectra

__all__ = ["attacks_figure", "decay_figure", "stages_figure"]

CURVES = 7
"""Stages at most whose singular values are drawn into one figure."""

LABELS = 45
"""Stages at most that are named below the figure; of more, every second or third."""


def stages_figure(stages: Sequence[StageSpectra], note: str) -> Figure:
    """Units, singular values and condition over the stages: medians, and quartiles shaded."""
    place = np.arange(len(stages))
    figure = Figure(figsize=(max(7, min(16, 2 + 0.28 * len(stages))), 8.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    units = [one.stage.size for one in stages]
    top.plot(place, units, color="0.75", label="units", linewidth=4)
    _ranged(top, place, [one.active for one in stages], "units that are on", "tab:blue")
    counts = [[s.count for s in one.spectra] for one in stages]
    _ranged(top, place, counts, "singular values that are not zero", "tab:red")
    top.set_yscale("log")
    top.set_ylabel("number")
    largest = [[s.largest for s in one.spectra] for one in stages]
    smallest = [[s.smallest for s in one.spectra] for one in stages]
    _ranged(middle, place, largest, "largest", "tab:blue")
    _ranged(middle, place, smallest, "smallest that is not zero", "tab:red")
    middle.set_yscale("log")
    middle.set_ylabel("singular value")
    conditions = [[s.condition for s in one.spectra] for one in stages]
    _ranged(bottom, place, conditions, "condition number", "tab:purple")
    bottom.set_yscale("log")
    bottom.set_ylabel("condition number")
    step = -(-len(stages) // LABELS)
    names = [str(one.stage) for one in stages]
    bottom.set_xticks(place[::step], names[::step], rotation=90, fontsize=7)
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
    for axes in (top, middle):
        axes.legend(fontsize=8)
    figure.suptitle(f"The network up to each of its stages\n{note}; quartiles shaded", fontsize=11)
    return figure


def decay_figure(stages: Sequence[StageSpectra], note: str) -> Figure:
    """All singular values at some of the stages, from input to output."""
    chosen = np.unique(np.linspace(0, len(stages) - 1, min(CURVES, len(stages))).round())
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(chosen)))
    for index, color in zip(chosen.astype(int), shades, strict=True):
        values = stages[index].median().numpy()
        shown = values[values > 1e-12 * values.max(initial=0.0)]
        label = f"{stages[index].stage}: {len(shown)}"
        marker = "o" if len(shown) < 3 else None
        axes.semilogy(np.arange(1, len(shown) + 1), shown, label=label, color=color, marker=marker)
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value (median)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="stage: how many are not zero", title_fontsize=8)
    figure.suptitle(f"Singular values\n{note}", fontsize=11)
    return figure


def attacks_figure(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]], shape: tuple[int, ...], title: str
) -> Figure:
    """Pictures in rows, each under its words.

    Arguments:
        rows: Of each row, words and an image in [0, 1], ``(n,)``.
        shape: (C, H, W) of the images.
        title: Of the figure.
    """
    wide = max(len(row) for row in rows)
    figure = Figure(figsize=(1.9 * wide, 2.05 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), wide, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, row in zip(grid, rows, strict=True):
        for axes, (words, image) in zip(line, row, strict=False):
            picture = image.reshape(shape).transpose(1, 2, 0)
            axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(words, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _ranged(
    axes: Axes, place: np.ndarray, values: Sequence[Sequence[float]], label: str, color: str
) -> None:
    known = [[v for v in one if not np.isnan(v)] or [np.nan] for one in values]
    low, middle, high = np.transpose([np.quantile(one, (0.25, 0.5, 0.75)) for one in known])
    axes.plot(place, middle, marker="o", markersize=3.5, linewidth=1.2, color=color, label=label)
    axes.fill_between(place, low, high, color=color, alpha=0.2, linewidth=0)
