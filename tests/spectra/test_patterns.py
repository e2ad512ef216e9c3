"""Isotope patterns against an exact multinomial, Poisson limits and the spectrum written out."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import poisson

from iresflow.spectra import isotope_pattern, pattern_bins, pattern_extent
from iresflow.spectra.patterns import (
    CARBON_13,
    ISOTOPE_DISTANCE,
    SIGMA,
    carbon_count,
)

# Abundances by the number of neutrons more than the lightest isotope has (IUPAC).
ISOTOPES = {
    "C": (1 - CARBON_13, CARBON_13),
    "H": (0.999885, 0.000115),
    "N": (0.99636, 0.00364),
    "O": (0.99757, 0.00038, 0.00205),
    "S": (0.9499, 0.0075, 0.0425, 0.0, 0.0001),
}
AVERAGINE = {"C": 4.9384, "H": 7.7583, "N": 1.3577, "O": 1.4773, "S": 0.0417}
MASSES = (500.0, 1000.0, 2000.0, 3500.0, 5000.0)
TINY = 1e-9
"""A threshold so low that nothing that matters is cut off."""


def multinomial(element, count):
    """The distribution of added neutrons of some atoms, by summing over all their isotopes."""
    shares = ISOTOPES[element]
    found = np.zeros((len(shares) - 1) * count + 1)
    for numbers in itertools.product(range(count + 1), repeat=len(shares) - 1):
        light = count - sum(numbers)
        if light < 0:
            continue
        ways = math.factorial(count)
        for number in (light, *numbers):
            ways //= math.factorial(number)
        chance = float(ways) * shares[0] ** light
        for number, share in zip(numbers, shares[1:], strict=True):
            chance *= share**number
        found[sum(k * number for k, number in enumerate(numbers, 1))] += chance
    return found


def exact(**atoms):
    """The distribution of added neutrons of a molecule of all its elements."""
    found = np.ones(1)
    for element, count in atoms.items():
        found = np.convolve(found, multinomial(element, count))
    return found


def test_the_oracle_knows_closed_forms():
    assert exact(C=3, H=2, O=1, S=1).sum() == pytest.approx(1, abs=1e-12)
    # The mean of a sum is the sum of the means.
    means = {e: sum(k * p for k, p in enumerate(shares)) for e, shares in ISOTOPES.items()}
    found = exact(C=5, N=2, O=2, S=1)
    mean = 5 * means["C"] + 2 * means["N"] + 2 * means["O"] + means["S"]
    assert found @ np.arange(len(found)) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("mass", [60.0, 300.0, 500.0, 1000.0])
def test_a_pattern_is_the_exact_multinomial_of_its_carbon(mass):
    chances = exact(C=carbon_count(mass))
    heights = isotope_pattern(mass, TINY)
    assert heights == pytest.approx(chances[: len(heights)] / chances.max(), rel=1e-9)


@pytest.mark.parametrize("mass", [300.0, 500.0])
def test_what_the_other_elements_add(mass):
    # Small peptides of averagine, in whole atoms: their heavier nitrogen, oxygen, sulphur and
    # hydrogen are all that the binomial distribution leaves out.
    units = mass / 111.1254
    atoms = {e: round(n * units) for e, n in AVERAGINE.items() if round(n * units)}
    whole = exact(**{e: n for e, n in atoms.items() if e != "H"})
    whole = np.convolve(whole, [1 - atoms["H"] * 0.000115, atoms["H"] * 0.000115])[:5]
    heights = isotope_pattern(mass, TINY)[:5]
    odds = sum(n * ISOTOPES[e][1] / ISOTOPES[e][0] for e, n in atoms.items())
    assert whole[1] / whole[0] == pytest.approx(odds, rel=1e-3)
    ratio = heights / (whole / whole[0])
    assert 0.88 < ratio[1] < 1  # the second peak lacks a tenth
    assert ratio[2] < 0.75  # and the third much more: oxygen 18 and sulphur 34


@pytest.mark.parametrize("mass", MASSES)
def test_many_atoms_of_a_rare_isotope_are_nearly_poisson(mass):
    carbons = carbon_count(mass)
    heights = isotope_pattern(mass, TINY)
    chances = heights / heights.sum()
    counts = np.arange(200)
    padded = np.pad(chances, (0, 200 - len(chances)))

    def distance(mean):
        return np.abs(padded - poisson.pmf(counts, mean)).sum() / 2

    # Le Cam: the total variation is at most the sum of the squared chances.
    limit = carbons * CARBON_13**2
    assert distance(carbons * CARBON_13) <= limit
    assert distance(1.2 * carbons * CARBON_13) > limit  # the control


def test_the_threshold_cuts_both_ends_off():
    heavy = isotope_pattern(30_000.0, 0.005)
    kept = np.flatnonzero(heavy)
    assert kept[0] > 0 and heavy.max() == 1
    assert (heavy[kept] >= 0.005).all()
    whole = isotope_pattern(30_000.0, TINY)
    assert (whole[: kept[0]] < 0.005).all() and whole[len(heavy)] < 0.005


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("width", [0.05, 0.3, 0.8])
def test_an_extent_is_where_single_peaks_are_above_the_threshold(mass, width):
    heights = isotope_pattern(mass)
    fine = np.linspace(mass - 5, mass + len(heights) + 5, 200_001)
    middles = mass + ISOTOPE_DISTANCE * np.arange(len(heights))
    peaks = heights[:, None] * np.exp(-((fine - middles[:, None]) ** 2) / 2 / (SIGMA * width) ** 2)
    above = fine[(peaks >= 0.005).any(0)]
    step = fine[1] - fine[0]
    assert pattern_extent(mass, width) == pytest.approx((above[0], above[-1]), abs=2 * step)
    # The width is what it is called: at half of it from the middle, the height is one half.
    assert np.exp(-((width / 2) ** 2) / 2 / (SIGMA * width) ** 2) == pytest.approx(0.5)


def test_bins_are_counted_on_the_grid():
    grid = np.linspace(30.0, 72.0, 27_286) ** 2
    for mass in MASSES:
        low, high = pattern_extent(mass if mass > 901 else 950.0, 0.3)
        bins = pattern_bins(mass if mass > 901 else 950.0, grid, 0.3)
        assert bins == ((grid >= low) & (grid < high)).sum()


def test_bad_arguments_are_refused():
    grid = np.linspace(500.0, 600.0, 100)
    for mass in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="mass must be a finite number above 0"):
            isotope_pattern(mass)
    for threshold in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="threshold must lie strictly between 0 and 1"):
            isotope_pattern(500.0, threshold)
    with pytest.raises(ValueError, match="peak_width must be a finite number above 0"):
        pattern_bins(550.0, grid, 0.0)
    with pytest.raises(ValueError, match="the grid only from 500 to 600"):
        pattern_bins(599.0, grid, 0.3)
    for wrong, words in (
        (grid[::-1], "masses rise strictly, got unsorted"),
        (np.repeat(grid, 2), "masses rise strictly, got twice"),
        (grid - 500, "masses are finite and above 0"),
        (np.append(grid, np.nan), "masses are finite and above 0"),
        (grid[:1], "two or more masses"),
        (grid[:, None], "two or more masses"),
    ):
        with pytest.raises(ValueError, match=words):
            pattern_bins(550.0, wrong, 0.3)
