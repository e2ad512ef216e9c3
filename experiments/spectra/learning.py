"""How many spectra each method needs: accuracy on the same tissue after training on more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator

from experiments.spectra.crossvalidation import compared, cross_predict, scores
from experiments.spectra.methods import NETWORKS, PLAIN, Training
from experiments.spectra.tissue import TASKS, Tissue, array_folds, tissue_spectra
from iresflow.commands.report import Report
from iresflow.spectra import RocLda
from iresflow.spectra.collection import Spectra
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run", "some_patients"]

DATA: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Settings(Section):
    """Learning curves."""

    seed: int = 0
    """Seed of the division into training and test arrays, and of the networks."""
    patients: tuple[int, ...] = (10, 30, 90)
    """Patients of each training array, even numbers; the test arrays have the last one's."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Those to run the methods on."""
    networks: tuple[str, ...] = ("IsotopeNet",)
    """Networks to train, beside the methods that need none."""
    isotope_spectra: int = 43_200
    """Spectra that IsotopeNet sees in training at least: few of them come more often."""
    residual_spectra: int = 7_200
    """The same, ResidualNet."""
    features: int = 60
    """Bins that ROC/LDA takes."""
    tissue: Tissue = field(default_factory=Tissue)
    training: Training = field(default_factory=Training)

    def _check(self) -> None:
        if not self.patients or min(self.patients) < 2 or any(n % 2 for n in self.patients):
            raise ValueError(f"patients must be even numbers, got {self.patients}")
        if unknown := set(self.networks) - set(NETWORKS):
            raise ValueError(f"networks must be among {', '.join(NETWORKS)}, got {unknown}")


def quick(settings: Settings) -> Settings:
    tissue = replace(settings.tissue, low=1980.0, high=2020.0, peptides=16, marking=4)
    training = replace(settings.training, isotope_epochs=2)
    return replace(
        settings, patients=(4, 8), isotope_spectra=500, tissue=tissue, training=training
    )


def some_patients(spectra: Spectra, places: np.ndarray, count: int) -> np.ndarray:
    """Those of some places ``(N,)`` whose patients are among the first of their array."""
    patients, arrays = spectra.patients, spectra.arrays
    assert patients is not None and arrays is not None
    first = np.array([patients[arrays == array].min() for array in np.unique(arrays)])
    rank = patients - first[np.searchsorted(np.unique(arrays), arrays)]
    return places[rank[places] < count]


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Trains all methods on each number of patients."""
    rows: list[dict[str, Any]] = []
    for task in settings.tasks:
        whole = replace(settings.tissue, patients=max(settings.patients))
        spectra = tissue_spectra(whole, task)
        train, test = array_folds(spectra, settings.seed)[0]
        for count in settings.patients:
            some = some_patients(spectra, train, count)
            first = None
            for name, make in _methods(settings, len(some)).items():
                file = f"{task}-{name.replace(' ', '-').replace('/', '-')}-{count}.npy"
                predicted = cross_predict(make, spectra, [(some, test)], report.path / file)
                tested, right = spectra[test], (predicted == spectra.labels)[test].astype(float)
                found = {
                    **scores(tested, predicted[test]),
                    **compared(tested, right, first, "ROC/LDA"),
                }
                first = right if first is None else first
                rows.append({"task": task, "method": name, "spectra": len(some), **found})
                report.table("learning", rows, _CAPTION)
    report.figure("learning", _figure(rows), "Balanced accuracy against training spectra")


_CAPTION = (
    "Balanced accuracy on the spots and cores of two arrays that no method has seen, after "
    "training on some patients of the other six. Intervals are those of accuracies on spots, and "
    "of their differences on the same spots, 95 % by the bootstrap over patients."
)


def _methods(settings: Settings, spectra: int) -> dict[str, Callable[[], BaseEstimator]]:
    """All methods for a number of training spectra."""
    training = settings.training.enough(
        spectra, isotope=settings.isotope_spectra, residual=settings.residual_spectra
    )
    networks = {
        name: partial(NETWORKS[name], training, settings.seed) for name in settings.networks
    }
    plain = {"ROC/LDA": partial(RocLda, features=settings.features), "linear": PLAIN["linear"]}
    return {**plain, **networks}


def _figure(rows: list[dict[str, Any]]) -> Figure:
    tasks, methods = (list(dict.fromkeys(row[of] for row in rows)) for of in ("task", "method"))
    figure = Figure(figsize=(1 + 4 * len(tasks), 3.8), layout="constrained")
    grid = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(grid, tasks, strict=True):
        for method in methods:
            mine = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            sizes, spots = ([row[of] for row in mine] for of in ("spectra", "spot"))
            axes.plot(sizes, spots, "o-", label=method)
        axes.set_xscale("log")
        ticks = sorted({row["spectra"] for row in rows})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(f"classes differ by {task}", fontsize=11)
        axes.set_xlabel("training spectra")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("balanced accuracy of spots")
    figure.axes[0].legend(fontsize=9)
    return figure
