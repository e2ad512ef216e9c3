"""Which masses IsotopeNet looks at on simulated tissue, where it is known which peptides differ.

Sensitivity maps (thesis, section 7.5): the gradient of the class' score, averaged over spectra of
arrays that were left out in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.spectra.methods import Training, isotope_net
from experiments.spectra.tissue import (
    TASKS,
    Tissue,
    array_folds,
    tissue_peptides,
    tissue_spectra,
)
from iresflow.commands.report import Report
from iresflow.spectra import (
    Effect,
    Peptide,
    SensitiveMass,
    SensitivityMap,
    Spectra,
    balanced_accuracy,
    sensitivity_map,
)
from iresflow.spectra.checks import Floats
from iresflow.spectra.patterns import ISOTOPE_DISTANCE
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "beside", "by_chance", "names_of", "quick", "run"]

DATA: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Settings(Section):
    """Sensitivity maps."""

    seed: int = 0
    """Seed of the folds and of the network."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Those to run."""
    peaks: int = 20
    """Peaks of a map to look at, those that are farthest from 0."""
    tolerance: float = 0.33
    """Daltons by which a peak may be beside a peptide's isotope peak: the width of peaks."""
    isotopes: int = 3
    """Isotope peaks of a peptide after the first that count as its own."""
    draws: int = 10_000
    """Random choices of as many peptides, for what would be by chance."""
    tissue: Tissue = field(default_factory=Tissue)
    training: Training = field(default_factory=Training)


def quick(settings: Settings) -> Settings:
    tissue = replace(settings.tissue, low=1980.0, high=2040.0, patients=10, peptides=16, marking=4)
    return replace(settings, tissue=tissue, training=replace(settings.training, isotope_epochs=6))


def names_of(peptides: Sequence[Peptide]) -> dict[str, float]:
    """The masses in daltons of the peptides that differ between classes, by names.

    A name has the class that an effect marks, and the mass.
    """
    return {
        f"{peptide.mass:.1f} ({label})": peptide.mass
        for peptide in peptides
        for label, effect in enumerate(peptide.effects)
        if effect != Effect()
    }


def beside(masses: Floats, peptides: Floats, tolerance: float, isotopes: int) -> NDArray[np.bool_]:
    """Which masses ``(masses,)`` are beside a peak of which peptides ``(peptides,)``, in daltons.

    Arguments:
        masses: Anywhere.
        peptides: The first isotope peak of each.
        tolerance: How far beside a peak still counts.
        isotopes: How many peaks after the first count.

    Returns:
        ``(masses, peptides)``.
    """
    peaks = peptides[:, None] + ISOTOPE_DISTANCE * np.arange(isotopes + 1)
    found: NDArray[np.bool_] = np.abs(masses[:, None, None] - peaks).min(2) <= tolerance
    return found


def by_chance(
    near: NDArray[np.bool_], marked: NDArray[np.bool_], draws: int, seed: int
) -> dict[str, float]:
    """How many masses are beside some peptides, and beside as many that are drawn from all.

    Arguments:
        near: What `beside` says ``(masses, peptides)``.
        marked: Which peptides are meant ``(peptides,)``.
        draws: How often others are drawn, at random and without replacement.
        seed: Of the draws.

    Returns:
        The count, the mean of drawn ones, and the probability that chance gives as many or more:
        that of a permutation test, which counts what was observed as a draw.
    """
    count = int(near[:, marked].any(1).sum())
    generator = np.random.default_rng(seed)
    drawn = [near[:, generator.permutation(marked)].any(1).sum() for _ in range(draws)]
    as_many = int((np.array(drawn) >= count).sum())
    return {
        "with names": count,
        "by chance": float(np.mean(drawn)),
        "probability": (1 + as_many) / (1 + draws),
    }


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Trains a network for each task, and looks at what it looks at."""
    rows: list[dict[str, Any]] = []
    for task in settings.tasks:
        peptides = tissue_peptides(settings.tissue, task)
        names = names_of(peptides)
        spectra = tissue_spectra(settings.tissue, task)
        train, test = array_folds(spectra, settings.seed)[0]
        tested = spectra[test]
        assert spectra.labels is not None and tested.labels is not None
        model = isotope_net(settings.training, settings.seed)
        model.fit(spectra[train], spectra.labels[train])
        found = sensitivity_map(model, tested, label=1)
        peaks = found.peaks(
            settings.peaks, names, tolerance=settings.tolerance, isotopes=settings.isotopes
        )
        near = beside(
            np.array([peak.mass for peak in peaks]),
            np.array([peptide.mass for peptide in peptides]),
            settings.tolerance,
            settings.isotopes,
        )
        marked = np.array([peptide.marks for peptide in peptides])
        rows.append(
            {
                "task": task,
                "spot": balanced_accuracy(tested.labels, model.predict(tested)),
                "peaks": len(peaks),
                **by_chance(near, marked, settings.draws, settings.seed),
                "peptides": f"{len({p.name for p in peaks} - {''})} of {len(names)}",
            }
        )
        report.table("sensitivity", rows, _CAPTION)
        report.table(f"peaks-{task}", _rows(found, peaks), "Its peaks, the farthest from 0 first")
        figure = _figure(tested, found, peaks)
        report.figure(f"sensitivity-{task}", figure, f"Which masses tell the {task} apart")


_CAPTION = (
    "Peaks of the map of class 1 that are beside an isotope peak of a peptide that tells the "
    "classes apart; how many are beside as many peptides drawn from all, on average, and the "
    "probability that drawn ones have as many; and how many of the peptides have a peak."
)


def _rows(found: SensitivityMap, peaks: Sequence[SensitiveMass]) -> list[dict[str, Any]]:
    """What is known of each peak; values in units of the largest one."""
    largest = np.abs(found.values).max()
    places = np.searchsorted(found.masses, [peak.mass for peak in peaks])
    return [
        {
            "mass": f"{peak.mass:.2f}",
            "value": peak.value / largest,
            "standard error": found.errors[place] / largest,
            "peptide (its class)": peak.name,
        }
        for peak, place in zip(peaks, places, strict=True)
    ]


def _figure(
    spectra: Spectra, found: SensitivityMap, peaks: Sequence[SensitiveMass], most: int = 8
) -> Figure:
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    assert spectra.labels is not None
    for label in np.unique(spectra.labels):
        mean = spectra.X[spectra.labels == label].mean(0)
        above.plot(found.masses, mean / spectra.X.mean(), lw=0.8, label=f"mean of class {label}")
    above.set_ylabel("intensity")
    above.legend(fontsize=9)
    largest = np.abs(found.values).max()
    values, errors = found.values / largest, found.errors / largest
    below.fill_between(found.masses, values - 2 * errors, values + 2 * errors, alpha=0.3, lw=0)
    below.plot(found.masses, values, lw=0.8)
    named = {peak.name: peak for peak in reversed(peaks) if peak.name}  # the highest of each
    for peak in sorted(named.values(), key=lambda peak: -abs(peak.value))[:most]:
        up = 1 if peak.value > 0 else -1
        below.annotate(
            peak.name,
            (peak.mass, peak.value / largest),
            (0, 9 * up),
            textcoords="offset points",
            ha="center",
            va="bottom" if up > 0 else "top",
            rotation=90,
            fontsize=8,
        )
    below.set_ylim(-2.6, 2.6)  # leaves room for names at the highest peak
    below.set_ylabel("sensitivity of class 1")
    below.set_xlabel("mass, daltons")
    below.grid(alpha=0.3)
    return figure
