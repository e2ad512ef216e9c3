"""Singular values of a network's linearisations at many points, and how they are drawn."""

from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from iresflow.relu.stability.removed_rows import removal_bounds
from iresflow.relu.stability.stage_spectra import StageSpectra, measure_stages

__all__ = [
    "Stages",
    "decay_figure",
    "effect_figure",
    "measure_spectra",
    "rows_of",
    "stages_figure",
]


Stages = Sequence[StageSpectra]
"""Of a network whose stages are before and after the activation of each layer, in turn."""


def measure_spectra(
    module: nn.Sequential, samples: Tensor, columns: Tensor | None, layers: int, title: str
) -> Stages:
    """The singular values of the first stages at some samples.

    Arguments:
        module: The network: layers that each have a ReLU after them.
        samples: Inputs ``(S, *in_shape)``.
        columns: Entries of the input that are moved; None for all.
        layers: Number of layers that are looked at, from the first.
        title: Of the progress bar.
    """
    ends = [index + 1 for index, part in enumerate(module) if isinstance(part, nn.ReLU)]
    bar = tqdm(samples, desc=title, unit="sample", dynamic_ncols=True, disable=None)
    return measure_stages(module[: ends[layers - 1]], bar, columns)


def rows_of(name: str, stages: Stages) -> Iterator[dict[str, object]]:
    """The rows of a table, one a stage."""
    for index, stage in enumerate(stages):
        bound = removal_bound(stages, index) if index % 2 else float("nan")
        yield {
            "network": name,
            "layer": index // 2 + 1,
            "place": "after ReLU" if index % 2 else "before ReLU",
            "output units": stage.stage.size,
            "non-zero singular values": stage.median_of(lambda s: s.count),
            "largest": stage.median_of(lambda s: s.largest),
            "smallest non-zero": stage.median_of(lambda s: s.smallest),
            "condition": stage.median_of(lambda s: s.condition),
            "bound of the smallest (lemma 3.5)": None if np.isnan(bound) else bound,
        }


def removal_bound(stages: Stages, index: int) -> float:
    """The median of lemma 3.5's bounds of the smallest non-zero singular value that are finite.

    Rows that the moved entries don't reach are zero, and no part of the matrices.
    """
    before, after = stages[index - 1], stages[index]
    removed = [was - now for was, now in zip(before.active, after.active, strict=True)]
    bounds = [removal_bounds(s, n)[0] for s, n in zip(before.spectra, removed, strict=True)]
    finite = [bound for bound in bounds if np.isfinite(bound)]
    return float(np.median(finite)) if finite else float("nan")


def decay_figure(spectra: Mapping[str, Stages], note: str) -> Figure:
    """The singular values after each activation, one panel a network (figures 5, 9 and 10)."""
    figure = Figure(figsize=(5.5 * len(spectra) + 1, 4.4), layout="constrained")
    panels = figure.subplots(1, len(spectra), squeeze=False)[0]
    for axes, (name, found) in zip(panels, spectra.items(), strict=True):
        activated = found[1::2]
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(activated)))
        for layer, (stage, color) in enumerate(zip(activated, shades, strict=True), 1):
            _curve(axes, stage, f"layer {layer}", color=color)
        _finish(axes, name)
    figure.suptitle(f"Singular values after each ReLU layer\n{note}", fontsize=11)
    return figure


def effect_figure(spectra: Mapping[str, Stages], layers: Sequence[int], note: str) -> Figure:
    """The singular values before and after ReLU of two layers (figures 7, 9 and 10)."""
    figure = Figure(figsize=(5.5 * len(spectra) + 1, 4.4), layout="constrained")
    panels = figure.subplots(1, len(spectra), squeeze=False)[0]
    for axes, (name, found) in zip(panels, spectra.items(), strict=True):
        for number, layer in enumerate(layers):
            before, after = found[2 * layer - 2], found[2 * layer - 1]
            style = {"color": f"C{number}"}
            _curve(axes, before, f"layer {layer}, before ReLU", linestyle="--", **style)
            _curve(axes, after, f"layer {layer}, after ReLU", **style)
        _finish(axes, name)
    figure.suptitle(f"What ReLU does to singular values\n{note}", fontsize=11)
    return figure


def stages_figure(spectra: Mapping[str, Stages], note: str) -> Figure:
    """Output units, singular values and condition over the stages (figure 4).

    The condition with its quartiles over the samples, shaded.
    """
    counts = {
        name: [one.median_of(lambda s: s.count) for one in found]
        for name, found in spectra.items()
    }
    lost = len({count for values in counts.values() for count in values}) > 1
    figure = Figure(figsize=(7, 7.5 if lost else 5.4), layout="constrained")
    panels = figure.subplots(3 if lost else 2, 1, sharex=True)
    top, bottom = panels[0], panels[-1]
    for number, (name, found) in enumerate(spectra.items()):
        # The second one dashed: where both are equal, both are seen.
        style = {"color": f"C{number * 3}", "marker": "os"[number % 2], "markersize": 4}
        style |= {"linestyle": ("-", "--")[number % 2], "label": name}
        place = np.arange(1, len(found) + 1)
        top.plot(place, [one.stage.size for one in found], **style)
        if lost:
            panels[1].plot(place, counts[name], **style)
        bottom.semilogy(place, [one.median_of(lambda s: s.condition) for one in found], **style)
        ranges = [_quartiles([s.condition for s in one.spectra]) for one in found]
        bottom.fill_between(place, *np.transpose(ranges), color=style["color"], alpha=0.2, lw=0)
        top.set_xticks(place, [f"{i // 2 + 1}{'R' * (i % 2)}" for i in range(len(found))])
    top.set_ylabel("output units")
    if lost:
        panels[1].set_ylabel("non-zero singular values")
        panels[1].set_ylim(bottom=0)
    else:
        note = f"{note}\nall {counts[name][0]:.0f} singular values are non-zero in every stage"
    bottom.set_ylabel("condition number\n(shaded: quartiles)")
    bottom.set_xlabel("layer, before and after its ReLU (R)")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True)
    top.legend()
    figure.suptitle(f"Condition and invariance over the layers\n{note}", fontsize=11)
    return figure


def _quartiles(values: Sequence[float]) -> np.ndarray:
    known = [value for value in values if not np.isnan(value)]
    return np.quantile(known, (0.25, 0.75)) if known else np.full(2, np.nan)


def _curve(axes: Axes, stage: StageSpectra, label: str, **style: object) -> None:
    values = stage.median().numpy()
    shown = values[values > 1e-12 * values.max(initial=0.0)]
    axes.semilogy(np.arange(1, len(shown) + 1), shown, label=label, linewidth=1.3, **style)


def _finish(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
