"""A simulated time-of-flight instrument: what it counts of peptides, and of none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import ndtr

from iresflow.spectra.checks import Floats, require_grid
from iresflow.spectra.grids import bin_edges
from iresflow.spectra.parameters import require_not_negative, require_positive
from iresflow.spectra.simulation.peptides import DEAMIDATION, Peptide, form_pattern

__all__ = ["Instrument", "baseline_ions", "peptide_ions"]

FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian, in standard deviations
REACH = 6.0  # standard deviations that a peak is drawn to: all but 2e-9 of its ions


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


def peptide_ions(
    instrument: Instrument,
    peptides: Sequence[Peptide],
    ions: Floats,
    shares: Floats,
    scales: Floats,
) -> Floats:
    """Expected ions ``(spots, bins)`` of all peptides.

    Arguments:
        instrument: What counts.
        peptides: P of them.
        ions: Of each in each spot, ``(spots, P)``.
        shares: That are deamidated, ``(spots, P)``.
        scales: What each spot's masses are multiplied by, ``(spots,)``.
    """
    edges = bin_edges(instrument.grid)
    found = np.zeros((len(ions), len(edges) - 1))
    margin = np.abs(scales - 1).max()
    for place, peptide in enumerate(peptides):
        forms = ((0.0, 1 - shares[:, place]), (DEAMIDATION, shares[:, place]))
        for heavier, part in forms:
            if not part.any():
                continue
            masses, pattern = form_pattern(peptide.mass + heavier)
            for mass, height in zip(masses, pattern, strict=True):
                width = mass / instrument.resolution / FWHM
                reach = REACH * width + margin * mass
                first, last = np.searchsorted(edges, [mass - reach, mass + reach])
                first, last = max(first - 1, 0), min(last, len(edges) - 1)
                seen = ndtr((edges[first : last + 1] - mass * scales[:, None]) / width)
                weight = (ions[:, place] * part * height)[:, None]
                found[:, first:last] += weight * np.diff(seen, axis=1)
    return found


def baseline_ions(instrument: Instrument) -> Floats:
    """Expected ions of no peptide in each bin, in the median, ``(bins,)``."""
    beyond = (instrument.grid - instrument.grid[0]) / instrument.decay
    return instrument.baseline * np.exp(-beyond) * np.diff(bin_edges(instrument.grid))
