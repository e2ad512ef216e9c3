"""Simulated tissue on which methods are compared: two tasks, by what tells the classes apart."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline

from experiments.spectra.methods import require_known
from iresflow.spectra import SquareRoot, TotalIonCount
from iresflow.spectra.collection import Spectra
from iresflow.spectra.grids import tof_grid
from iresflow.spectra.groups import group_folds
from iresflow.spectra.simulation.instrument import Instrument
from iresflow.spectra.simulation.peptides import HEIGHTS, ISOTOPES, Effect, Peptide, draw_peptides
from iresflow.spectra.simulation.spectra import simulate
from iresflow.spectra.simulation.tissue import Layout
from iresflow.training.sections import Section

__all__ = ["TASKS", "Tissue", "array_folds", "prepared", "tissue_peptides", "tissue_spectra"]

TASKS: Mapping[str, Effect] = {"heights": HEIGHTS, "isotopes": ISOTOPES}


@dataclass(kw_only=True)
class Tissue(Section):
    """Tissue and instrument of the simulated tasks."""

    low: float = 1950.0
    """Lower end of the mass range, in daltons."""
    high: float = 2100.0
    """Upper end."""
    width: float = 0.163
    """Mean width of the bins in daltons (thesis, section 7.3.2)."""
    arrays: int = 8
    """Tissue microarrays, two of which are left out in each fold."""
    patients: int = 30
    """On each of them."""
    cores: int = 1
    """Of each patient."""
    spots: int = 4
    """Spectra of each core."""
    peptides: int = 40
    """Peptides in the mass range."""
    marking: int = 5
    """Those of them that differ, for each class."""
    seed: int = 0
    """Of peptides and spectra."""


def tissue_peptides(tissue: Tissue, task: str) -> tuple[Peptide, ...]:
    """The peptides of a task.

    Raises:
        ValueError: there is no such task, or the tissue's numbers don't fit each other.
    """
    require_known("task", [task], TASKS)
    margin = 8.0  # so that whole isotope patterns lie in the range
    return draw_peptides(
        tissue.low + 1,
        tissue.high - margin,
        TASKS[task],
        count=tissue.peptides,
        marking=tissue.marking,
        seed=tissue.seed,
    )


def tissue_spectra(tissue: Tissue, task: str) -> Spectra:
    """The spectra of a task, prepared.

    Raises:
        ValueError: as `tissue_peptides`.
    """
    peptides = tissue_peptides(tissue, task)
    layout = Layout(tissue.arrays, tissue.patients, tissue.cores, tissue.spots)
    instrument = Instrument(tof_grid(tissue.low, tissue.high, tissue.width))
    return prepared(simulate(peptides, layout, instrument, seed=tissue.seed))


def prepared(spectra: Spectra) -> Spectra:
    """Square roots of the counts, divided by their sum. Nothing is learnt from other spectra."""
    rooted = make_pipeline(SquareRoot(), TotalIonCount()).fit_transform(spectra.X)
    return Spectra(
        rooted.astype(np.float32),
        spectra.grid,
        spectra.labels,
        spectra.cores,
        spectra.patients,
        spectra.arrays,
    )


def array_folds(spectra: Spectra, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Four folds that leave whole arrays out (thesis, section 7.4.1)."""
    splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    assert spectra.labels is not None and spectra.arrays is not None
    return group_folds(spectra.labels, spectra.arrays, splitter, cores=spectra.cores)
