"""What the parts of IsotopeNet are worth: receptive field, stride, local layer, grid, filters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline

from experiments.spectra.crossvalidation import (
    compared,
    cross_predict,
    fold_scores,
    patient_interval,
    scores,
)
from experiments.spectra.methods import Training, isotope_net, require_known
from experiments.spectra.tissue import TASKS, Tissue, array_folds, tissue_spectra
from iresflow.commands.report import Report
from iresflow.spectra import (
    BinFilters,
    PhysicalFilters,
    Resampling,
    count_parameters,
    receptive_field,
)
from iresflow.spectra.checks import Floats
from iresflow.spectra.networks.isotope import IsotopeNetwork
from iresflow.training.sections import Section

__all__ = ["DATA", "VARIANTS", "Settings", "quick", "run", "size_of"]

DATA: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Settings(Section):
    """Ablations."""

    seed: int = 0
    """Seed of the folds; the runs have seeds of their own, from it on."""
    runs: int = 1
    """Trainings of each variant with equal settings."""
    folds: int = 4
    """Of the four, how many are run."""
    variants: tuple[str, ...] = ()
    """Those to run; all if there are none."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Those to run them on."""
    tissue: Tissue = field(default_factory=Tissue)
    training: Training = field(default_factory=Training)

    def _check(self) -> None:
        if not 1 <= self.folds <= 4:
            raise ValueError(f"folds must be 1 to 4, got {self.folds}")


def quick(settings: Settings) -> Settings:
    tissue = replace(settings.tissue, low=1980.0, high=2020.0, patients=6, peptides=16, marking=4)
    return replace(settings, tissue=tissue, training=replace(settings.training, isotope_epochs=2))


# Filters over bins with the receptive field that the name says; the thesis' sees 49 bins.
SMALL = BinFilters(strides=(1, 1, 15), maps=(8, 8, 1))
LARGE = BinFilters(kernel_size=7)
FINE = BinFilters(strides=(1, 2, 1, 3))
COARSE = BinFilters(strides=(1, 15, 1, 1))

# Of each fold and run; and the mean of spots with its interval.
Scores = tuple[list[float], tuple[float, float, float]]

Variant = Callable[[Floats, Training, int], BaseEstimator]


def _over_bins(filters: BinFilters, local_kernel: int = 5) -> Variant:
    return lambda grid, training, seed: isotope_net(
        training, seed, filters=filters, local_kernel=local_kernel
    )


def _equidistant(grid: Floats, training: Training, seed: int) -> BaseEstimator:
    return make_pipeline(Resampling(grid), isotope_net(training, seed))


def _physical(grid: Floats, training: Training, seed: int) -> BaseEstimator:
    width = float((grid[-1] - grid[0]) / (len(grid) - 1))
    filters = PhysicalFilters(spacing=width, distance=5 * width)
    return isotope_net(training, seed, filters=filters, grid=grid)


VARIANTS: Mapping[str, Variant] = {
    "as in the thesis": _over_bins(BinFilters()),
    "receptive field too small": _over_bins(SMALL),
    "receptive field too large": _over_bins(LARGE),
    "stride 2 for 5": _over_bins(FINE),
    "stride 15 for 5": _over_bins(COARSE),
    "no local layer": _over_bins(BinFilters(), local_kernel=0),
    "equidistant grid": _equidistant,
    "filters in daltons": _physical,
}


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Trains all variants on both tasks."""
    chosen = settings.variants or tuple(VARIANTS)
    require_known("variant", chosen, VARIANTS)
    rows: list[dict[str, Any]] = []
    found: dict[str, dict[str, Scores]] = {name: {} for name in chosen}
    for task in settings.tasks:
        spectra = tissue_spectra(settings.tissue, task)
        folds = array_folds(spectra, settings.seed)[: settings.folds]
        tested = np.concatenate([test for _, test in folds])
        first = None
        for name in chosen:
            each, of_folds, rights = [], [], []
            for seed in range(settings.seed, settings.seed + settings.runs):
                make = partial(VARIANTS[name], spectra.grid, settings.training, seed)
                file = report.path / f"{task}-{name.replace(' ', '-')}-{seed}.npy"
                predicted = cross_predict(make, spectra, folds, file)
                each.append(scores(spectra[tested], predicted[tested]))
                of_folds += [s["spot"] for s in fold_scores(spectra, predicted, folds)]
                rights.append((predicted == spectra.labels)[tested])
            right = np.mean(rights, axis=0)
            found[name][task] = of_folds, patient_interval(spectra[tested], right)
            rows.append(
                {
                    "task": task,
                    "variant": name,
                    **size_of(make(), len(spectra.grid)),
                    "spot": float(np.median([score["spot"] for score in each])),
                    "folds, lowest": min(of_folds),
                    "folds, highest": max(of_folds),
                    "core": float(np.median([score["core"] for score in each])),
                    **compared(spectra[tested], right, first, "the first"),
                }
            )
            first = right if first is None else first
            report.table(
                "ablations", rows, _CAPTION.format(folds=settings.folds, runs=settings.runs)
            )
    said = "Balanced accuracy of spots: mean and 95 % interval over patients, each fold a point"
    report.figure("ablations", _figure(found), said)


_CAPTION = (
    "IsotopeNet and variants of it on {folds} of 4 folds that leave arrays out: balanced accuracy "
    "of spots and cores, medians of {runs} runs, and the lowest and the highest fold. Intervals "
    "are those of accuracies on spots, and of their differences on the same spots, 95 % by the "
    "bootstrap over patients."
)


def size_of(model: BaseEstimator, bins: int) -> dict[str, Any]:
    """What the network sees of a spectrum, and how many parameters it has."""
    net = model[-1] if hasattr(model, "steps") else model
    network = IsotopeNetwork(bins, 2, net.grid, net.filters, net.local_kernel, net.dropout)
    physical = isinstance(net.filters, PhysicalFilters)
    return {
        "bins seen": None if physical else receptive_field(network),
        "parameters": count_parameters(network),
    }


def _figure(found: Mapping[str, Mapping[str, Scores]]) -> Figure:
    tasks = list(next(iter(found.values())))
    size = (2.5 + 3.2 * len(tasks), 0.8 + 0.45 * len(found))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(tasks), sharex=True, sharey=True, squeeze=False)[0]
    for axes, task in zip(grid, tasks, strict=True):
        for place, of_tasks in enumerate(found.values()):
            values, (mean, low, high) = of_tasks[task]
            axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5)
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="k|", ms=12)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_title(f"classes differ by {task}", fontsize=11)
        axes.set_xlabel("balanced accuracy of spots")
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    return figure
