"""Arrays in, figures out."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "density_figure",
    "estimator_figure",
    "histogram_figure",
    "inversion_figure",
    "layer_norm_figure",
    "save_figure",
    "scatter_figure",
]


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


def layer_norm_figure(
    certified: np.ndarray, measured: np.ndarray, coeffs: np.ndarray, depths: np.ndarray
) -> Figure:
    """Operator norms layer by layer, and how far bound and measurement are apart.

    Arguments:
        certified: Proven upper bounds of the norms, ``(N,)``.
        measured: The norms measured from below, ``(N,)``.
        coeffs: The limit of each, ``(N,)``.
        depths: Each layer's place in its branch, ``(N,)`` integers.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    index = np.arange(1, len(certified) + 1)
    top.axhline(1, color="tab:red", linewidth=1, label="1")
    top.step(index, coeffs, where="mid", color="0.6", linewidth=1, label="coefficient")
    top.scatter(index, certified, marker="_", s=70, color="black", label="certified bound")
    gap = np.maximum(certified / np.maximum(measured, 1e-300) - 1, 1e-16)
    for depth in np.unique(depths):
        at, color = depths == depth, f"C{depth % 10}"
        name = f"measured, layer {depth + 1} of its branch"
        top.scatter(index[at], measured[at], s=18, color=color, label=name, zorder=3)
        bottom.scatter(index[at], gap[at], s=18, color=color)
    low = float(min(measured.min(), coeffs.min(), 0.9))
    top.set_ylim(max(0.0, low - 0.08 * (1 - low)), 1 + 0.25 * (1 - low))
    top.set_ylabel("largest singular value")
    top.set_title("Largest singular value of each layer")
    top.legend(fontsize=8, ncols=3, loc="lower left")
    bottom.set_yscale("log")
    bottom.set_ylabel("certified / measured - 1")
    bottom.set_xlabel("layer, in the order of the flow")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    return figure


def inversion_figure(
    coeffs: Sequence[float],
    iterations: np.ndarray,
    median: np.ndarray,
    largest: np.ndarray,
    block: np.ndarray,
    bound: np.ndarray,
    note: str = "",
) -> Figure:
    """Errors of fixed-point inverses against the number of iterations, for C coefficients.

    Arguments:
        coeffs: The limits of the layers' norms, ``(C,)``.
        iterations: ``(K,)``.
        median, largest: Of the flow's reconstruction error over samples, ``(C, K)``.
        block: The largest relative error of any one block, ``(C, K)``.
        bound: What it is proven not to exceed, ``(C, K)``.
        note: How the coefficients were made.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(coeffs)))
    for i, (coeff, color) in enumerate(zip(coeffs, shades, strict=True)):
        left.semilogy(iterations, median[i], "o-", markersize=3, color=color, label=f"{coeff:g}")
        left.fill_between(iterations, median[i], largest[i], color=color, alpha=0.25, linewidth=0)
        right.semilogy(iterations, block[i], "o-", markersize=3, color=color, label=f"{coeff:g}")
        right.semilogy(iterations, bound[i], "--", linewidth=1, color=color)
    left.set_title("The whole flow: median and, shaded, up to the largest", fontsize=10)
    left.set_ylabel("root mean square error, after the data map", fontsize=9)
    right.set_title("The worst block, and the bound of Lemma 4.5 (dashed)", fontsize=10)
    right.set_ylabel("error / first step", fontsize=9)
    for axes in (left, right):
        _floor(axes, 1e-13)
        axes.set_xlabel("fixed-point iterations in each block")
        axes.legend(title="coefficient", fontsize=8, title_fontsize=8)
        axes.grid(alpha=0.3)
    figure.suptitle("Inversion by fixed-point iteration" + (f"\n{note}" if note else ""), size=11)
    return figure


def estimator_figure(
    labels: Sequence[str],
    products: Sequence[np.ndarray],
    bias: Sequence[np.ndarray],
    deviation: Sequence[np.ndarray],
    note: str = "",
) -> Figure:
    """Bias and standard deviation of log-determinant estimators against their cost.

    Arguments:
        labels: Of the families, ``(F,)``.
        products: Products with the Jacobian, for each family ``(N,)``.
        bias: Absolute bias in bits/dim, for each family ``(N,)``.
        deviation: Standard deviation of one estimate in bits/dim, for each family ``(N,)``.
        note: What was measured on.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (label, x) in enumerate(zip(labels, products, strict=True)):
        style = {"color": f"C{i}", "marker": "osD^v<>"[i % 7], "markersize": 4, "label": label}
        left.plot(x, bias[i], **style)
        right.plot(x, deviation[i], **style)
    left.set_yscale("log")
    left.set_title("Bias: mean distance from the converged value, same probes", fontsize=10)
    left.set_ylabel("bias, bits/dim")
    spread = np.concatenate([np.asarray(values, dtype=float) for values in deviation])
    spread = spread[np.isfinite(spread) & (spread > 0)]
    if spread.size and spread.max() > 10 * spread.min():
        right.set_yscale("log")
    elif spread.size:
        right.set_ylim(0, 1.3 * spread.max())
    right.set_title("Standard deviation of one probe and sample", fontsize=10)
    right.set_ylabel("standard deviation, bits/dim")
    for axes in (left, right):
        axes.set_xlabel("products with the Jacobian, for each probe and block")
        axes.legend(fontsize=9)
        axes.grid(alpha=0.3)
    figure.suptitle("Estimators of the log-determinant" + (f"\n{note}" if note else ""), size=11)
    return figure


def histogram_figure(
    labels: Sequence[str],
    inside: Sequence[np.ndarray],
    outside: Sequence[np.ndarray],
    name: str,
) -> Figure:
    """Histograms of S scores of samples that are inside and of others.

    The axis spans all scores but the largest and smallest hundredth of each set; what lies beyond
    is counted at its end.

    Arguments:
        labels: Names of the scores, ``(S,)``.
        inside, outside: Their values, ``(N,)`` and ``(M,)`` each.
        name: Of the samples from elsewhere.
    """
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(labels) :]:
        axes.set_axis_off()
    for axes, label, *pair in zip(grid, labels, inside, outside, strict=False):
        known = [values[np.isfinite(values)] for values in pair]
        ends = [np.quantile(v, [0.01, 0.99]) for v in known if v.size] or [np.array([0.0, 1.0])]
        low, high = min(e[0] for e in ends), max(e[1] for e in ends)
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for values, title, color in zip(pair, ("inside", name), ("C0", "C3"), strict=True):
            shares = np.full(len(values), 1 / max(1, len(values)))
            axes.hist(
                values.clip(edges[0], edges[-1]),
                edges,
                weights=shares,
                color=color,
                alpha=0.55,
                label=title,
            )
        axes.set_title(label, fontsize=10)
        axes.tick_params(labelsize=8)
    grid[0].legend(fontsize=8)
    figure.supxlabel("score, larger the more outlying", fontsize=9)
    figure.supylabel("share of the samples", fontsize=9)
    return figure


def _floor(axes: Axes, low: float) -> None:
    """Cuts a logarithmic axis off at ``low``, below which there is only rounding."""
    axes.set_ylim(bottom=max(low, axes.get_ylim()[0]))


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, dpi=120)
