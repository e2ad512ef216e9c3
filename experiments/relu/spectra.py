"""Singular values of a network's linearisations at many points, and how they are drawn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from iresflow.relu.networks.network import Network
from iresflow.relu.ranks import Spectrum
from iresflow.relu.stability.local_map import Stage, restrict_to_polytope
from iresflow.relu.stability.removed_rows import removal_bounds
from iresflow.relu.stability.stage_spectra import stage_spectra

__all__ = ["Spectra", "decay_figure", "effect_figure", "measure_spectra", "stages_figure"]


@final
@dataclass(frozen=True, eq=False)
class Spectra:
    """Singular values at S samples.

    Attributes:
        stages: Places in the network.
        spectra: For each stage, one spectrum a sample.
        off: For each stage after an activation, the numbers of units that are off; else empty.
    """

    stages: tuple[Stage, ...]
    spectra: tuple[tuple[Spectrum, ...], ...]
    off: tuple[tuple[int, ...], ...]

    def median(self, index: int) -> np.ndarray:
        """The median over samples of each singular value of a stage, falling; zeros included."""
        values = [spectrum.values.numpy() for spectrum in self.spectra[index]]
        # Of an even number the lower one: the mean of a zero and a value would be neither.
        return np.quantile(values, 0.5, axis=0, method="lower")

    def condition(self, index: int) -> float:
        """The median condition number of a stage."""
        return float(np.median([spectrum.condition for spectrum in self.spectra[index]]))

    def count(self, index: int) -> float:
        """The median number of non-zero singular values of a stage."""
        return float(np.median([spectrum.count for spectrum in self.spectra[index]]))

    def rows(self, name: str) -> Iterator[dict[str, object]]:
        """The rows of a table, one a stage."""
        for index, stage in enumerate(self.stages):
            row: dict[str, object] = {
                "network": name,
                "layer": stage.layer + 1,
                "place": "after ReLU" if stage.activated else "before ReLU",
                "output units": stage.size,
                "non-zero singular values": self.count(index),
                "largest": float(np.median([s.values[0] for s in self.spectra[index]])),
                "smallest non-zero": self._smallest(index),
                "condition": self.condition(index),
                "bound of the smallest (lemma 3.5)": None,
            }
            if stage.activated:
                bounds = self.bounds(index)
                finite = bounds[np.isfinite(bounds)]
                if len(finite):
                    row["bound of the smallest (lemma 3.5)"] = float(np.median(finite))
            yield row

    def bounds(self, index: int) -> np.ndarray:
        """Lemma 3.5's bound of the smallest non-zero singular value, at each sample."""
        before, removed = self.spectra[index - 1], self.off[index]
        return np.array(
            [removal_bounds(s, count)[0] for s, count in zip(before, removed, strict=True)]
        )

    def _smallest(self, index: int) -> float | None:
        smallest = [s.positive[-1] for s in self.spectra[index] if s.count]
        return float(np.median(smallest)) if smallest else None


def measure_spectra(
    network: Network, samples: Tensor, columns: Tensor | None, layers: int, title: str
) -> Spectra:
    """The singular values of the first stages at some samples.

    Arguments:
        network: The network.
        samples: Inputs ``(S, *in_shape)``.
        columns: Entries of the input that are moved; None for all.
        layers: Number of layers that are looked at, from the first.
        title: Of the progress bar.
    """
    first = restrict_to_polytope(network, samples[0], columns)
    stages = tuple(stage for stage in first.stages if stage.layer < layers)
    spectra: list[list[Spectrum]] = [[] for _ in stages]
    off: list[list[int]] = [[] for _ in stages]
    bar = tqdm(total=len(samples) * len(stages), desc=title, unit="stage", dynamic_ncols=True)
    with bar:
        for x in samples:
            local = restrict_to_polytope(network, x, columns)
            known = spectra[0][0] if spectra[0] else None
            found = stage_spectra(local, known)
            for index, (stage, spectrum) in zip(range(len(stages)), found, strict=False):
                spectra[index].append(spectrum)
                if stage.activated:
                    off[index].append(int((local.slopes[stage.layer] == 0).sum()))
                bar.update()
    return Spectra(stages, tuple(map(tuple, spectra)), tuple(map(tuple, off)))


def decay_figure(spectra: Mapping[str, Spectra], note: str) -> Figure:
    """The singular values after each activation, one panel a network (figures 5, 9 and 10)."""
    figure = Figure(figsize=(5.5 * len(spectra) + 1, 4.4), layout="constrained")
    panels = figure.subplots(1, len(spectra), squeeze=False)[0]
    for axes, (name, found) in zip(panels, spectra.items(), strict=True):
        indices = [i for i, stage in enumerate(found.stages) if stage.activated]
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(indices)))
        for index, color in zip(indices, shades, strict=True):
            label = f"layer {found.stages[index].layer + 1}"
            _curve(axes, found.median(index), label, color=color)
        _finish(axes, name)
    figure.suptitle(f"Singular values after each ReLU layer\n{note}", fontsize=11)
    return figure


def effect_figure(spectra: Mapping[str, Spectra], layers: Sequence[int], note: str) -> Figure:
    """The singular values before and after ReLU of two layers (figures 7, 9 and 10)."""
    figure = Figure(figsize=(5.5 * len(spectra) + 1, 4.4), layout="constrained")
    panels = figure.subplots(1, len(spectra), squeeze=False)[0]
    for axes, (name, found) in zip(panels, spectra.items(), strict=True):
        for index, stage in enumerate(found.stages):
            if stage.layer + 1 not in layers:
                continue
            color = f"C{list(layers).index(stage.layer + 1)}"
            style = "-" if stage.activated else "--"
            place = "after" if stage.activated else "before"
            label = f"layer {stage.layer + 1}, {place} ReLU"
            _curve(axes, found.median(index), label, color=color, linestyle=style)
        _finish(axes, name)
    figure.suptitle(f"What ReLU does to singular values\n{note}", fontsize=11)
    return figure


def stages_figure(spectra: Mapping[str, Spectra], note: str) -> Figure:
    """Output units, singular values and condition over the stages (figure 4).

    The condition with its quartiles over the samples, shaded.
    """
    counts = {
        name: [one.count(i) for i in range(len(one.stages))] for name, one in spectra.items()
    }
    lost = len({count for values in counts.values() for count in values}) > 1
    figure = Figure(figsize=(7, 7.5 if lost else 5.4), layout="constrained")
    panels = figure.subplots(3 if lost else 2, 1, sharex=True)
    top, bottom = panels[0], panels[-1]
    for number, (name, found) in enumerate(spectra.items()):
        # The second one dashed: where both are equal, both are seen.
        style = {"color": f"C{number * 3}", "marker": "os"[number % 2], "markersize": 4}
        style |= {"linestyle": ("-", "--")[number % 2], "label": name}
        index = range(len(found.stages))
        place = np.arange(1, len(found.stages) + 1)
        top.plot(place, [stage.size for stage in found.stages], **style)
        if lost:
            panels[1].plot(place, counts[name], **style)
        bottom.semilogy(place, [found.condition(i) for i in index], **style)
        ranges = [_quartiles([s.condition for s in one]) for one in found.spectra]
        bottom.fill_between(place, *np.transpose(ranges), color=style["color"], alpha=0.2, lw=0)
        top.set_xticks(place, [_short(stage) for stage in found.stages])
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


def _short(stage: Stage) -> str:
    return f"{stage.layer + 1}R" if stage.activated else str(stage.layer + 1)


def _curve(axes: Axes, values: np.ndarray, label: str, **style: object) -> None:
    shown = values[values > 1e-12 * values.max(initial=0.0)]
    axes.semilogy(np.arange(1, len(shown) + 1), shown, label=label, linewidth=1.3, **style)


def _finish(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
