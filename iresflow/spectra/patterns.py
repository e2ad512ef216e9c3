"""The isotope pattern of an average peptide, and how many bins of a grid it takes (figure 7.3).

The thesis (section 7.3.2) counts the carbon atoms of a peptide made of averagine, the average
amino acid of Senko et al. (1995), and lets each be carbon 13 by itself: a binomial distribution.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from iresflow.spectra.checks import Floats, require_grid
from iresflow.spectra.parameters import require_fraction, require_positive

__all__ = [
    "CARBON_13",
    "ISOTOPE_DISTANCE",
    "carbon_count",
    "isotope_pattern",
    "pattern_bins",
    "pattern_extent",
]

AVERAGINE_MASS, AVERAGINE_CARBONS = 111.1254, 4.9384
"""Of averagine, C4.9384 H7.7583 N1.3577 O1.4773 S0.0417 (Senko et al., 1995): daltons, atoms."""

CARBON_13 = 0.0107
"""The share of carbon 13 in natural carbon (IUPAC)."""

ISOTOPE_DISTANCE = 1.003355
"""Daltons by which carbon 13 is heavier than carbon 12."""

SIGMA = 1 / np.sqrt(8 * np.log(2))
"""Standard deviation of a normal density of full width 1 at half its maximum."""


def carbon_count(mass: float) -> int:
    """The carbon atoms of an average peptide.

    Arguments:
        mass: Of the peptide, in daltons.

    Raises:
        ValueError: it is not above 0.
    """
    require_positive(mass=mass)
    return round(mass / AVERAGINE_MASS * AVERAGINE_CARBONS)


def isotope_pattern(mass: float, threshold: float = 0.005) -> Floats:
    """The relative heights of the isotope peaks of an average peptide (thesis, section 7.3.2).

    Arguments:
        mass: Of the peptide, in daltons.
        threshold: Peaks that are lower than this share of the highest are cut off.

    Returns:
        The heights ``(peaks,)``, the highest being 1: entry k is of the peak with k atoms of
        carbon 13. The last one is that of the last peak that is left; of heavy peptides, the first
        ones are cut off, too, and then 0.

    Raises:
        ValueError: a mass that is not above 0, or a threshold outside of (0, 1).
    """
    require_fraction(threshold=threshold)
    carbons = carbon_count(mass)
    logs = binom.logpmf(np.arange(carbons + 1), carbons, CARBON_13)
    heights: Floats = np.exp(logs - logs.max())
    heights[heights < threshold] = 0.0
    return heights[: np.flatnonzero(heights)[-1] + 1]


def pattern_extent(
    mass: float, peak_width: float, threshold: float = 0.005
) -> tuple[float, float]:
    """From where to where the isotope pattern of an average peptide reaches, in daltons.

    Each peak is a normal density. The pattern reaches as far as one of them exceeds the threshold.

    Arguments:
        mass: Of the first peak, the one without carbon 13, in daltons (charge 1).
        peak_width: Full width of a peak at half its height, in daltons.
        threshold: Share of the highest peak below which nothing counts.

    Raises:
        ValueError: as `isotope_pattern`; or a peak width that is not above 0.
    """
    require_positive(peak_width=peak_width)
    heights = isotope_pattern(mass, threshold)
    left = np.flatnonzero(heights)
    # A height of h falls to the threshold t at sigma sqrt(2 log(h / t)) from its middle.
    reach = peak_width * SIGMA * np.sqrt(2 * np.log(heights[left] / threshold))
    middles = mass + left * ISOTOPE_DISTANCE
    return float((middles - reach).min()), float((middles + reach).max())


def pattern_bins(mass: float, grid: ArrayLike, peak_width: float, threshold: float = 0.005) -> int:
    """How many bins of a grid the isotope pattern of an average peptide takes (figure 7.3).

    Arguments:
        mass: As in `pattern_extent`.
        grid: Masses of the bins' centres ``(bins,)``, ascending, in daltons.
        peak_width: As in `pattern_extent`.
        threshold: As in `pattern_extent`.

    Raises:
        ValueError: as `pattern_extent` and `require_grid`; or a pattern that leaves the grid.
    """
    masses = require_grid(grid)
    low, high = pattern_extent(mass, peak_width, threshold)
    if low < masses[0] or high > masses[-1]:
        raise ValueError(
            f"the pattern of {mass:g} Da goes from {low:g} to {high:g} Da, and the grid only from "
            f"{masses[0]:g} to {masses[-1]:g}"
        )
    first, end = np.searchsorted(masses, [low, high])
    return max(1, int(end - first))
