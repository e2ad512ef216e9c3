"""ROC/LDA, ResidualNet and IsotopeNet on simulated tissue microarrays (thesis, figure 7.5).

An invertible residual network on the bins, which the thesis does not have, stands beside them.

Two tasks: classes that differ by the heights of whole isotope patterns, and classes that differ by
the structure of patterns alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any, final

import numpy as np
from matplotlib.figure import Figure

from experiments.spectra.crossvalidation import (
    Folds,
    cross_predict,
    cross_predict_roc,
    fold_scores,
    patient_interval,
    scores,
)
from experiments.spectra.invertible import InvertibleNet, InvertibleTraining
from experiments.spectra.methods import Training, isotope_net, residual_net
from experiments.spectra.tissue import TASKS, Tissue, array_folds, tissue_spectra
from iresflow.commands.report import Report
from iresflow.spectra.collection import Spectra
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, object]] = {}

FEATURES = (5, 10, 20, 40, 60, 80, 100)

NETWORKS: Mapping[str, Callable[["Settings", int], Any]] = {
    "ResidualNet": lambda settings, seed: residual_net(settings.training, seed),
    "IsotopeNet": lambda settings, seed: isotope_net(settings.training, seed),
    "i-ResNet": lambda settings, seed: InvertibleNet(settings.invertible, seed),
}

# Balanced accuracies of the thesis, figure 7.5: spot and core; the worst and the best number of
# features of ROC/LDA, medians of four runs otherwise.
THESIS = {
    "ROC/LDA": {"ADSQ": "0.758-0.787, 0.788-0.860", "LP": "0.794-0.840, 0.876-0.918"},
    "ResidualNet": {"ADSQ": "0.824, 0.870", "LP": "0.921, 0.973"},
    "IsotopeNet": {"ADSQ": "0.845, 0.885", "LP": "0.962, 1.000"},
    "i-ResNet": {"ADSQ": "", "LP": ""},
}


@dataclass(kw_only=True)
class Settings(Section):
    """Comparison."""

    seed: int = 0
    """Seed of the folds; the runs have seeds of their own, from it on."""
    runs: int = 4
    """Trainings of IsotopeNet with equal settings (thesis: four)."""
    residual_runs: int = 4
    """The same, each of the two residual networks."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Those to run the methods on."""
    tissue: Tissue = field(default_factory=Tissue)
    training: Training = field(default_factory=Training)
    invertible: InvertibleTraining = field(default_factory=InvertibleTraining)


def quick(settings: Settings) -> Settings:
    tissue = replace(settings.tissue, low=1980.0, high=2040.0, patients=10, peptides=16, marking=4)
    return replace(
        settings,
        runs=1,
        residual_runs=1,
        tissue=tissue,
        training=replace(settings.training, isotope_epochs=6, residual_epochs=2),
        invertible=replace(settings.invertible, steps=40),
    )


@final
@dataclass(frozen=True)
class Outcome:
    """What a method has shown on a task.

    Attributes:
        row: Of the table.
        folds: The scores of each fold and run.
        right: How often each spectrum was right ``(spectra,)``, a share of the runs.
    """

    row: dict[str, Any]
    folds: list[dict[str, float]]
    right: np.ndarray


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Runs all methods on both tasks."""
    rows: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    found: dict[str, dict[str, Outcome]] = {}
    for task in settings.tasks:
        spectra = tissue_spectra(settings.tissue, task)
        folds = array_folds(spectra, settings.seed)
        found[task] = {"ROC/LDA": _roc(spectra, folds, report, task)}
        for name in NETWORKS:
            found[task][name] = _network(name, spectra, folds, settings, report, task)
        for outcome in found[task].values():
            interval = patient_interval(spectra, outcome.right)
            rows.append({"task": task, **outcome.row, "interval": _text(*interval[1:])})
        differences += _differences(spectra, found[task], task)
        report.table("comparison", rows, _CAPTION)
        report.table("differences", differences, _DIFFERENCES)
    report.figure("comparison", _figure(found), "Balanced accuracy by fold (figure 7.5)")


_CAPTION = (
    "Balanced accuracy by 4-fold cross-validation over arrays, on spots and by majority vote on "
    "cores. ROC/LDA: the worst and the best number of bins, 5 to 100. Networks: the median of the "
    "runs and their interquartile range. The thesis' tasks are others, on real tissue: spot, "
    "core. Interval: 95 % of the mean accuracy on spots, by the bootstrap over patients; of "
    "ROC/LDA with the best number of bins."
)

_DIFFERENCES = (
    "By how much a method is more often right on spots than another, on the same spectra: the "
    "mean over runs, and its 95 % interval by the bootstrap over patients. ROC/LDA has the number "
    "of bins that is best on these very spectra."
)


def _roc(spectra: Spectra, folds: Folds, report: Report, task: str) -> Outcome:
    found = cross_predict_roc(spectra, folds, FEATURES, report.path / f"{task}-ROC.npy")
    each = {count: scores(spectra, predicted) for count, predicted in found.items()}
    best = max(each, key=lambda count: each[count]["spot"])
    row: dict[str, Any] = {"method": "ROC/LDA", "runs": 1}
    for level in ("spot", "core"):
        values = [score[level] for score in each.values()]
        row[level] = f"{min(values):.3f}-{max(values):.3f}"
        row[f"{level}, spread"] = ""
    right = (found[best] == spectra.labels).astype(float)
    return Outcome(_with_thesis(row), fold_scores(spectra, found[best], folds), right)


def _network(
    name: str, spectra: Spectra, folds: Folds, settings: Settings, report: Report, task: str
) -> Outcome:
    each, of_folds, right = [], [], []
    runs = settings.runs if name == "IsotopeNet" else settings.residual_runs
    for seed in range(settings.seed, settings.seed + runs):
        make = partial(NETWORKS[name], settings, seed)
        file = report.path / f"{task}-{name}-{seed}.npy"
        predicted = cross_predict(make, spectra, folds, file)
        each.append(scores(spectra, predicted))
        of_folds += fold_scores(spectra, predicted, folds)
        right.append(predicted == spectra.labels)
    row: dict[str, Any] = {"method": name, "runs": runs}
    for level in ("spot", "core"):
        low, middle, high = np.percentile([score[level] for score in each], [25, 50, 75])
        row[level] = f"{middle:.3f}"
        row[f"{level}, spread"] = f"{high - low:.3f}" if runs > 1 else ""
    return Outcome(_with_thesis(row), of_folds, np.mean(right, axis=0))


def _with_thesis(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{f"thesis, {task}": v for task, v in THESIS[row["method"]].items()}}


def _text(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def _differences(
    spectra: Spectra, found: Mapping[str, Outcome], task: str
) -> list[dict[str, Any]]:
    """Each network against ROC/LDA, and against each network before it."""
    rows = []
    for (one, first), (other, second) in combinations(found.items(), 2):
        mean, low, high = patient_interval(spectra, second.right - first.right)
        named = {"task": task, "method": other, "against": one}
        rows.append({**named, "difference": f"{mean:+.3f}", "interval": _text(low, high)})
    return rows


def _figure(found: Mapping[str, Mapping[str, Outcome]]) -> Figure:
    figure = Figure(figsize=(4.5 * len(found), 6.4), layout="constrained")
    grid = figure.subplots(2, len(found), sharey="row", sharex="col", squeeze=False)
    for column, (task, outcomes) in enumerate(found.items()):
        for axes, level in zip(grid[:, column], ("spot", "core"), strict=True):
            axes.boxplot([[score[level] for score in o.folds] for o in outcomes.values()])
            axes.set_xticks(range(1, len(outcomes) + 1), list(outcomes))
            axes.grid(axis="y", alpha=0.3)
            grid[0 if level == "spot" else 1, 0].set_ylabel(f"balanced accuracy of {level}s")
        grid[0, column].set_title(f"classes differ by {task}", fontsize=11)
    return figure
