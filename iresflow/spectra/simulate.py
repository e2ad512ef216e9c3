"""Mass spectra of tissue spots with a truth that is known: peptides, instrument, random effects.

The model is that of imaging mass spectrometry by time of flight (thesis, sections 7.2 and 7.3): a
tissue microarray holds cores of patients, a core has spots, and each spot gives a spectrum of
counted ions. Ions of a peptide, in the median over the random effects ``M``, are scattered at
each level of that hierarchy,

    ions = M * exp(class + array + patient + core + spot + gain),

where all but the class are normal with the deviations of a `Variation` and mean 0, drawn for each
peptide by itself but for the gain, which all peptides of a spot share. They arrive at the masses
of the averagine isotope pattern, with Gaussian peaks; a bin counts a Poisson number of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr

from iresflow.spectra.checks import (
    Floats,
    require_count,
    require_grid,
    require_not_negative,
    require_positive,
)
from iresflow.spectra.collection import Spectra
from iresflow.spectra.grids import bin_edges, tof_grid
from iresflow.spectra.peptides import DEAMIDATION, Peptide, classes_of, form_pattern

__all__ = ["Instrument", "Layout", "Variation", "expected_ions", "simulate"]

FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian, in standard deviations
REACH = 6.0  # standard deviations that a peak is drawn to: all but 2e-9 of its ions


@final
@dataclass(frozen=True)
class Layout:
    """How many of each there are. The class of a patient is its number modulo the classes.

    Arguments:
        arrays: Tissue microarrays.
        patients: On each of them.
        cores: Of each patient.
        spots: In each core: the spectra.
    """

    arrays: int = 8
    patients: int = 6
    cores: int = 2
    spots: int = 8

    def __post_init__(self) -> None:
        require_count(**vars(self))


@final
@dataclass(frozen=True)
class Instrument:
    """What measures.

    Arguments:
        grid: Masses of the bins' centres ``(bins,)``, in daltons.
        resolution: A peak's mass over its full width at half maximum, for all masses.
        baseline: Ions of no peptide for each dalton at the first mass, in the median.
        decay: By how many daltons they fall to 1 / e.

    Raises:
        ValueError: a value is out of its range, or the grid is none.
    """

    grid: Floats
    resolution: float = 6000.0
    baseline: float = 20.0
    decay: float = 1000.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", require_grid(self.grid))
        require_positive(resolution=self.resolution, decay=self.decay)
        require_not_negative(baseline=self.baseline)


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


def simulate(
    peptides: Sequence[Peptide],
    layout: Layout | None = None,
    instrument: Instrument | None = None,
    variation: Variation | None = None,
    *,
    seed: int = 0,
) -> Spectra:
    """Spectra with shot noise: a Poisson number of ions in each bin around `expected_ions`.

    Arguments and errors are those of `expected_ions`; the random effects of a seed are, too.

    Returns:
        Counts, float64, with all that is known of each spectrum.
    """
    expected = expected_ions(peptides, layout, instrument, variation, seed=seed)
    shots = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])
    return replace(expected, X=shots.poisson(expected.X).astype(np.float64))


def expected_ions(
    peptides: Sequence[Peptide],
    layout: Layout | None = None,
    instrument: Instrument | None = None,
    variation: Variation | None = None,
    *,
    seed: int = 0,
) -> Spectra:
    """The ions that each bin would count in the mean over shots, given the random effects.

    Arguments:
        peptides: What the tissue holds (`iresflow.spectra.peptides.draw_peptides`).
        layout: Numbers of arrays, patients, cores and spots; None for ``Layout()``.
        instrument: Grid, resolution and baseline; None for a time-of-flight grid of 1,800 to
            2,200 Da.
        variation: The random effects; None for ``Variation()``.
        seed: Of the random effects.

    Returns:
        Spectra with ``labels`` (the number of the class), ``cores``, ``patients`` and ``arrays``
        (numbers from 0) and ``coordinates`` (the same for spots of different arrays).

    Raises:
        ValueError: no peptide, peptides with different numbers of classes, or fewer patients
            than classes.
    """
    layout = layout or Layout()
    instrument = instrument or Instrument(tof_grid(1800.0, 2200.0))
    variation = variation or Variation()
    classes = classes_of(peptides)
    if (patients := layout.arrays * layout.patients) < classes:
        raise ValueError(f"{patients} patients can't have {classes} classes")
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
    spots = np.arange(patients * layout.cores * layout.spots)
    cores = spots // layout.spots
    patient = cores // layout.cores
    tree = _Tree(patient % classes, spots, cores, patient, patient // layout.patients)
    ions, shares = _amounts(peptides, tree, variation, generator)
    shifts = variation.array_shift * generator.standard_normal(layout.arrays)[tree.array]
    shifts += variation.shift * generator.standard_normal(len(spots))
    levels = np.exp(variation.baseline * generator.standard_normal((len(spots), 1)))
    return Spectra(
        _drawn(peptides, ions, shares, 1 + 1e-6 * shifts, instrument)
        + levels * _baseline(instrument),
        instrument.grid,
        labels=tree.label,
        cores=cores,
        patients=patient,
        arrays=tree.array,
        coordinates=_places(spots, cores, layout),
    )


class _Tree(NamedTuple):
    """The class and the numbers of the levels that each spot belongs to, ``(spots,)`` each."""

    label: NDArray[np.int64]
    spot: NDArray[np.int64]
    core: NDArray[np.int64]
    patient: NDArray[np.int64]
    array: NDArray[np.int64]


def _amounts(
    peptides: Sequence[Peptide], tree: _Tree, variation: Variation, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    """The ions of each peptide in each spot, and their deamidated shares, ``(spots, P)`` both."""

    def scattered(level: NDArray[np.int64], deviation: float) -> Floats:
        return deviation * generator.standard_normal((level[-1] + 1, len(peptides)))[level]

    effects = [peptide.effects for peptide in peptides]
    heights = np.array([[effect.log_height for effect in row] for row in effects])
    logits = np.array([[effect.logit_share for effect in row] for row in effects])
    ions = np.log([peptide.ions for peptide in peptides]) + heights.T[tree.label]
    ions = ions + variation.gain * generator.standard_normal((len(tree.spot), 1))
    for level in ("array", "patient", "core", "spot"):
        ions = ions + scattered(getattr(tree, level), getattr(variation, level))
    with np.errstate(divide="ignore"):  # a share of 0 has a logit of minus infinity, and stays 0
        shares = logit([peptide.share for peptide in peptides]) + logits.T[tree.label]
    return np.exp(ions), expit(shares + scattered(tree.patient, variation.share))


def _drawn(
    peptides: Sequence[Peptide], ions: Floats, shares: Floats, scales: Floats, device: Instrument
) -> Floats:
    """Expected ions ``(spots, bins)`` of all peptides.

    Arguments:
        peptides: P of them.
        ions: Of each in each spot, ``(spots, P)``.
        shares: That are deamidated, ``(spots, P)``.
        scales: What each spot's masses are multiplied by, ``(spots,)``.
        device: The instrument.
    """
    edges = bin_edges(device.grid)
    found = np.zeros((len(ions), len(edges) - 1))
    margin = np.abs(scales - 1).max()
    for place, peptide in enumerate(peptides):
        forms = ((0.0, 1 - shares[:, place]), (DEAMIDATION, shares[:, place]))
        for heavier, part in forms:
            if not part.any():
                continue
            masses, pattern = form_pattern(peptide.mass + heavier)
            for mass, height in zip(masses, pattern, strict=True):
                width = mass / device.resolution / FWHM
                reach = REACH * width + margin * mass
                first, last = np.searchsorted(edges, [mass - reach, mass + reach])
                first, last = max(first - 1, 0), min(last, len(edges) - 1)
                seen = ndtr((edges[first : last + 1] - mass * scales[:, None]) / width)
                weight = (ions[:, place] * part * height)[:, None]
                found[:, first:last] += weight * np.diff(seen, axis=1)
    return found


def _baseline(device: Instrument) -> Floats:
    """Expected ions of no peptide in each bin, in the median, ``(bins,)``."""
    beyond = (device.grid - device.grid[0]) / device.decay
    return device.baseline * np.exp(-beyond) * np.diff(bin_edges(device.grid))


def _places(spots: NDArray, cores: NDArray, layout: Layout) -> NDArray[np.int64]:
    """Pixels ``(spots, 3)``: spots in a square for each core, cores in a square for each array."""
    side, row = (int(np.ceil(np.sqrt(n))) for n in (layout.spots, layout.patients * layout.cores))
    spot, core = spots % layout.spots, cores % (layout.patients * layout.cores)
    x = (core % row) * (side + 2) + spot % side + 1
    y = (core // row) * (side + 2) + spot // side + 1
    return np.stack([x, y, np.ones_like(x)], axis=1)
