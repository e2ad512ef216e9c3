"""Simulated tissue: arrays of cores of patients, and how the ions of peptides scatter there.

Ions of a peptide, in the median over the random effects ``M``, are scattered at each level of
that hierarchy,

    ions = M * exp(class + array + patient + core + spot + gain),

where all but the class are normal with the deviations of a `Variation` and mean 0, drawn for each
peptide by itself but for the gain, which all peptides of a spot share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from iresflow.spectra.checks import Floats
from iresflow.spectra.parameters import require_count, require_not_negative
from iresflow.spectra.simulation.peptides import Peptide

__all__ = ["Layout", "Levels", "Variation", "scattered_ions"]


class Levels(NamedTuple):
    """The class of each spot, and the numbers of what it is part of, ``(spots,)`` each."""

    label: NDArray[np.int64]
    spot: NDArray[np.int64]
    core: NDArray[np.int64]
    patient: NDArray[np.int64]
    array: NDArray[np.int64]


@final
@dataclass(frozen=True)
class Layout:
    """How many of each there are. The class of a patient is its number modulo the classes.

    Arguments:
        arrays: Tissue microarrays.
        patients: On each of them.
        cores: Of each patient.
        spots: In each core: the spectra.

    Raises:
        ValueError: one is no whole number of 1 or more.
    """

    arrays: int = 8
    patients: int = 6
    cores: int = 2
    spots: int = 8

    def __post_init__(self) -> None:
        require_count(**vars(self))

    def levels(self, classes: int) -> Levels:
        """What each spot is part of, if patients are of so many classes.

        Raises:
            ValueError: there are fewer patients than classes.
        """
        if (patients := self.arrays * self.patients) < classes:
            raise ValueError(f"{patients} patients can't have {classes} classes")
        spot = np.arange(patients * self.cores * self.spots)
        core = spot // self.spots
        patient = core // self.cores
        return Levels(patient % classes, spot, core, patient, patient // self.patients)

    def places(self, levels: Levels) -> NDArray[np.int64]:
        """Pixels ``(spots, 3)``: spots in a square for each core, cores in one for each array."""
        of_array = self.patients * self.cores
        side, row = (int(np.ceil(np.sqrt(count))) for count in (self.spots, of_array))
        spot, core = levels.spot % self.spots, levels.core % of_array
        x = (core % row) * (side + 2) + spot % side + 1
        y = (core // row) * (side + 2) + spot // side + 1
        return np.stack([x, y, np.ones_like(x)], axis=1)


@final
@dataclass(frozen=True)
class Variation:
    """Standard deviations of the random effects, all normal with mean 0.

    Arguments:
        array: Of the natural logarithm of a peptide's ions, between arrays.
        patient: Of the same between the patients of an array.
        core: Between the cores of a patient.
        spot: Between the spots of a core.
        gain: Of the logarithm of all peptides' ions alike, between spots.
        baseline: Of the logarithm of the baseline, between spots.
        share: Of the logit of a peptide's deamidated share, between patients.
        shift: Of the mass scale between spots, in millionths (ppm).
        array_shift: Of the same between arrays.

    Raises:
        ValueError: one is negative or not finite.
    """

    array: float = 0.2
    patient: float = 0.5
    core: float = 0.3
    spot: float = 0.4
    gain: float = 0.4
    baseline: float = 0.3
    share: float = 0.7
    shift: float = 50.0
    array_shift: float = 50.0

    def __post_init__(self) -> None:
        require_not_negative(**vars(self))


def scattered_ions(
    peptides: Sequence[Peptide],
    levels: Levels,
    variation: Variation,
    generator: np.random.Generator,
) -> tuple[Floats, Floats]:
    """The ions of each peptide in each spot, and their deamidated shares, ``(spots, P)`` both.

    Arguments:
        peptides: P of them.
        levels: Of the spots.
        variation: The random effects.
        generator: What they are drawn from.
    """

    def scattered(level: NDArray[np.int64], deviation: float) -> Floats:
        return deviation * generator.standard_normal((level[-1] + 1, len(peptides)))[level]

    effects = [peptide.effects for peptide in peptides]
    heights = np.array([[effect.log_height for effect in row] for row in effects])
    logits = np.array([[effect.logit_share for effect in row] for row in effects])
    ions = np.log([peptide.ions for peptide in peptides]) + heights.T[levels.label]
    ions = ions + variation.gain * generator.standard_normal((len(levels.spot), 1))
    for level in ("array", "patient", "core", "spot"):
        ions = ions + scattered(getattr(levels, level), getattr(variation, level))
    with np.errstate(divide="ignore"):  # a share of 0 has a logit of minus infinity, and stays 0
        shares = logit([peptide.share for peptide in peptides]) + logits.T[levels.label]
    return np.exp(ions), expit(shares + scattered(levels.patient, variation.share))
