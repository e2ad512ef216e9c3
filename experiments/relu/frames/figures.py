"""The figures of `experiments.relu.frames`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from iresflow.relu.frames.active_rows import FrameBounds

__all__ = ["accuracy_figure", "bounds_figure", "image_figure", "share_figure"]

STYLES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "v"))
"""Lines and markers, as some curves lie upon each other."""

HELD, FREE = "tab:red", "tab:blue"
"""Colours of layers trained with and without the penalty."""


def share_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Figure 2: the two measures of section 4.1 over the epochs.

    Arguments:
        curves: By layer, shares ``(E + 1,)`` of points and of biases, in [0, 1].
        title: The data set.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (label, (points, biases)) in enumerate(curves.items()):
        line, marker = STYLES[i % len(STYLES)]
        epochs = np.arange(len(points))
        every = max(1, len(epochs) // 8)
        style = {"color": f"C{i}", "linestyle": line, "marker": marker, "markersize": 9 - 2 * i}
        style |= {"markevery": every, "markerfacecolor": "none"}
        left.plot(epochs, 100 * points, label=label, **style)
        right.plot(epochs, 100 * biases, **style)
    left.set_title("test points with n active rows or more", fontsize=10)
    right.set_title(r"biases with $\alpha_i \leq \alpha^*_i$", fontsize=10)
    for axes in (left, right):
        axes.set_ylim(-3, 103)
        axes.set_xlabel("epoch")
        axes.set_ylabel("%")
        axes.grid(alpha=0.3)
    figure.suptitle(f"How invertible is the first layer? {title}", size=11)
    figure.legend(fontsize=9, loc="outside lower center", ncols=len(curves))
    return figure


def accuracy_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Figure 3: test accuracy with and without the penalty, over the later epochs.

    The axis begins below what is reached there: from 0 the difference could not be seen.

    Arguments:
        curves: By data set, accuracies ``(runs, E + 1)`` with and without.
    """
    figure = Figure(figsize=(4.5 * len(curves), 3.6), layout="constrained")
    for axes, (name, (held, free)) in zip(
        _columns(figure, len(curves)), curves.items(), strict=True
    ):
        for values, color, style, label in (
            (free, FREE, "-", "unregularised"),
            (held, HELD, "--", "approximately invertible"),
        ):
            epochs = np.arange(values.shape[1])
            axes.plot(epochs, 100 * values.mean(0), style, color=color, label=label)
            if len(values) > 1:
                low, high = 100 * values.min(0), 100 * values.max(0)
                axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
        late = 100 * np.concatenate([held, free])[:, max(1, held.shape[1] // 5) :]
        margin = 0.1 * (late.max() - late.min()) + 0.1
        axes.set_ylim(late.min() - margin, min(100.5, late.max() + margin))
        spread = ", mean and range of the networks" if len(held) > 1 else ""
        axes.set_title(name + spread, fontsize=10)
        axes.set_xlabel("epoch (the first ones lie below)")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    lines, names = axes.get_legend_handles_labels()
    figure.legend(lines, names, fontsize=9, loc="outside upper center", ncols=2)
    return figure


def image_figure(
    inputs: Tensor, held: Tensor, free: Tensor, shape: Sequence[int], count: int = 8
) -> Figure:
    """Figure 4: images and their reconstructions with and without the penalty.

    Arguments:
        inputs: Images ``(B, n)`` in [0, 1].
        held: From the layer trained with the penalty, ``(B, n)``.
        free: From the one without.
        shape: (C, H, W) of an image.
        count: Images at most.
    """
    count = min(count, len(inputs))
    figure = Figure(figsize=(1.15 * count, 3.9), layout="constrained")
    grid = figure.subplots(3, count, squeeze=False)
    names = ("original", "approx.\ninvertible", "unregu-\nlarised")
    for row, (name, images) in enumerate(zip(names, (inputs, held, free), strict=True)):
        for column in range(count):
            axes = grid[row, column]
            picture = images[column].reshape(*shape).mean(0).numpy()
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if row:
                error = float((images[column] - inputs[column]).norm())
                axes.set_xlabel(f"{error:.2g}", fontsize=8)
        grid[row, 0].set_ylabel(name, fontsize=9)
    figure.suptitle("Below each reconstruction: its error, 2-norm of the picture", fontsize=9)
    return figure


def bounds_figure(bounds: Mapping[str, tuple[FrameBounds, FrameBounds]]) -> Figure:
    """Figure 5: the sets A and B of extreme singular values at test points.

    Arguments:
        bounds: By data set, with and without the penalty.
    """
    figure = Figure(figsize=(9, 3.2 * len(bounds)), layout="constrained")
    grid = figure.subplots(len(bounds), 2, squeeze=False)
    for row, (name, (held, free)) in zip(grid, bounds.items(), strict=True):
        for axes, field, symbol in ((row[0], "lower", "A"), (row[1], "upper", "B")):
            values = [getattr(free, field).numpy(), getattr(held, field).numpy()]
            low = min(v.min() for v in values) if field == "upper" else 0.0
            edges = np.linspace(low, max(v.max() for v in values) * 1.02 + 1e-12, 40)
            for value, color, label, filled in zip(
                values, (FREE, HELD), ("unregularised", "approx. invertible"), (True, False),
                strict=True,
            ):  # fmt: skip
                kind = "stepfilled" if filled else "step"
                style = {"alpha": 0.45} if filled else {"linewidth": 1.6}
                axes.hist(value, edges, histtype=kind, color=color, label=label, **style)
            what = "smallest" if field == "lower" else "largest"
            axes.set_title(f"{name}: ${{\\cal {symbol}}}$, {what} singular value", fontsize=10)
            axes.set_xlabel("singular value of the active rows")
            axes.set_ylabel("test points")
    labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(*labels, fontsize=9, loc="outside upper center", ncols=2)
    return figure


def _columns(figure: Figure, count: int) -> Sequence[Axes]:
    return figure.subplots(1, count, squeeze=False)[0]
