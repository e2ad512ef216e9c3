"""Measured spectra, each set with what has to be left out together."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import BaseCrossValidator, LeaveOneGroupOut, StratifiedGroupKFold

from experiments.spectra.methods import require_known
from iresflow.data.base import resolve_root
from iresflow.errors import DataError
from iresflow.spectra.collection import Spectra, gather
from iresflow.spectra.grids import tof_grid

__all__ = ["DATA_SETS", "MeasuredSet", "load_set", "spectra_root"]


@dataclass(frozen=True)
class MeasuredSet:
    """A set of measured spectra, all of them by linear time of flight, and how it is divided.

    Arguments:
        spectra: With labels, and a sample of its own as the core of each spectrum.
        groups: What is left out together ``(spectra,)``.
        splitter: How.
        recorded: The grid that was recorded ``(points,)``; None for that of the spectra.
    """

    spectra: Spectra
    groups: np.ndarray
    splitter: BaseCrossValidator
    recorded: np.ndarray | None = None


def spectra_root(directory: str | None) -> Path:
    """Where the sets are."""
    return Path(directory) if directory else resolve_root(None) / "spectra"


def load_set(name: str, directory: str | None) -> MeasuredSet:
    """A set by its name.

    Raises:
        DataError: the directory or the set's file is missing.
        ValueError: there is no such set.
    """
    require_known("set", [name], DATA_SETS)
    file, read = DATA_SETS[name]
    path = spectra_root(directory) / file
    if not path.is_file():
        raise DataError(
            f"there is no file {path}: point --spectra, or the environment variable "
            f"IRESFLOW_DATA at a directory with {os.path.join('spectra', file)}"
        )
    with np.load(path) as content:
        return read(content)


def _isolates(content: Mapping[str, np.ndarray]) -> MeasuredSet:
    """20 bacterial isolates; a biological replicate of all of them is left out."""
    sample = np.char.add(np.char.add(content["isolate"], "-"), content["biorep"].astype(str))
    spectra = Spectra(content["X"], content["mz"], content["isolate"], cores=sample)
    recorded = spectra.X.any(axis=1)  # one of the 400 is empty
    return MeasuredSet(spectra[recorded], content["biorep"][recorded], LeaveOneGroupOut())


def _cancer(content: Mapping[str, np.ndarray]) -> MeasuredSet:
    """Cancer against normal; two patients of each are left out."""
    # Its baseline was subtracted too far in places: counts are not negative.
    heights = np.maximum(content["X"], 0.0)
    patient = content["patient"]
    spectra = Spectra(heights, content["mz"], content["label"], cores=patient)
    return MeasuredSet(spectra, patient, StratifiedGroupKFold(5))


def _species(content: Mapping[str, np.ndarray]) -> MeasuredSet:
    """Four species; two samples of each are left out."""
    sample = np.char.add(np.char.add(content["species"], "-"), content["sample"])
    spectra = Spectra(content["X"], content["mz"], content["species"], cores=sample)
    return MeasuredSet(spectra, sample, StratifiedGroupKFold(4))


def _fiedler(content: Mapping[str, np.ndarray]) -> MeasuredSet:
    """Serum, pancreatic cancer against controls, a patient of each left out (Fiedler et al. 2009).

    Two spectra a patient; four of controls, four of cancer, from Leipzig, and the same from
    Heidelberg (MALDIquant's documentation).
    """
    places = range(16)
    labels = np.repeat(["control", "cancer", "control", "cancer"], 4)
    patient = np.repeat(np.arange(8), 2)
    grid = tof_grid(1002.0, 9998.0, 2.0)
    masses, heights = [content[f"mz{i}"] for i in places], [content[f"I{i}"] for i in places]
    spectra = gather(masses, heights, grid, labels=labels, cores=patient)
    return MeasuredSet(spectra, patient, StratifiedGroupKFold(4), recorded=content["mz0"])


# The name of each set, its file, and how it is read.
DATA_SETS: Mapping[str, tuple[str, Callable[[Any], MeasuredSet]]] = {
    "isolates": ("maldirppa.npz", _isolates),
    "cancer": ("imac40.npz", _cancer),
    "species": ("species96.npz", _species),
    "fiedler": ("fiedler16.npz", _fiedler),
}
