"""The simulator against closed forms: masses, patterns, variances, counts, and the Bayes error."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from iresflow.spectra.estimators.roc_lda import RocLda
from iresflow.spectra.grids import bin_edges, tof_grid
from iresflow.spectra.patterns import isotope_pattern
from iresflow.spectra.simulation.instrument import Instrument
from iresflow.spectra.simulation.peptides import (
    HEIGHTS,
    ISOTOPES,
    Effect,
    Peptide,
    draw_peptides,
    form_pattern,
)
from iresflow.spectra.simulation.spectra import expected_ions, simulate
from iresflow.spectra.simulation.tissue import Layout, Variation

STILL = Variation(**{field.name: 0.0 for field in fields(Variation)})
GRID = tof_grid(1990.0, 2020.0)
BARE = Instrument(GRID, baseline=0.0)


def within(values, truth, errors=4.0):
    """Whether the mean of independent values is the truth within some standard errors."""
    return abs(np.mean(values) - truth) <= errors * np.std(values, ddof=1) / np.sqrt(len(values))


def test_without_variation_a_peptide_is_its_isotope_pattern():
    peptide = Peptide(2000.9, 500.0)
    found = expected_ions([peptide], Layout(1, 2, 1, 1), BARE, STILL)
    assert found.X[0].sum() == pytest.approx(500.0, rel=1e-6)  # no ion is lost on the way
    np.testing.assert_array_equal(found.X[0], found.X[1])
    # Its peaks, each against a Gaussian of its own, integrated numerically over the bins.
    masses, shares = form_pattern(2000.9)
    heights = isotope_pattern(2000.9)
    np.testing.assert_allclose(shares / shares.max(), heights)
    sigmas = masses / 6000 / 2.354820045
    fine = np.linspace(0, 1, 201)[1::2]
    edges = bin_edges(GRID)
    x = edges[:-1, None] + np.diff(edges)[:, None] * fine
    density = sum(
        share * norm.pdf(x, mass, sigma)
        for mass, share, sigma in zip(masses, shares, sigmas, strict=True)
    )
    oracle = 500.0 * density.mean(1) * np.diff(edges)
    np.testing.assert_allclose(found.X[0], oracle, atol=1e-2)


def test_the_mean_mass_of_a_peptide_moves_with_its_deamidated_share():
    share, effect = 0.3, Effect(logit_share=1.2)
    plain, mixed = Peptide(2000.9, 100.0), Peptide(2000.9, 100.0, share, (Effect(), effect))
    layout = Layout(1, 2, 1, 1)
    still = expected_ions([plain], layout, BARE, STILL)
    found = expected_ions([mixed], layout, BARE, STILL)
    moved = (found.X - still.X) @ GRID / 100.0
    changed = expit(np.log(share / (1 - share)) + 1.2)
    np.testing.assert_allclose(moved, [0.98402 * share, 0.98402 * changed], atol=2e-3)
    np.testing.assert_allclose(found.X.sum(1), 100.0, rtol=1e-6)


def levels_of(variation, seed, layout):
    """The logarithm of one peptide's ions, as an array (arrays, patients, cores, spots)."""
    peptide = Peptide(2000.9, 100.0)
    ions = expected_ions([peptide], layout, BARE, variation, seed=seed).X.sum(1)
    shape = (layout.arrays, layout.patients, layout.cores, layout.spots)
    return (np.log(ions) - np.log(100.0)).reshape(shape)


@pytest.mark.parametrize("level", ["array", "patient", "core", "spot", "gain"])
def test_each_level_has_its_own_variance(level):
    layout = Layout(arrays=400, patients=2, cores=2, spots=2)
    logs = levels_of(replace(STILL, **{level: 0.5}), 3, layout)
    axis = {"array": 1, "patient": 2, "core": 3, "spot": 4, "gain": 4}[level]
    inner = tuple(range(axis, 4))
    assert inner == () or np.ptp(logs, axis=inner).max() < 1e-9  # nothing below it differs
    ones = logs.mean(axis=inner).ravel()
    squares = ones**2
    assert within(ones, 0.0) and within(squares, 0.25)
    assert not within(squares, 0.5)  # the control: a deviation is no variance
    if axis > 1:  # siblings are independent
        pairs = logs.mean(axis=inner) if inner else logs
        assert within(pairs[..., 0].ravel() * pairs[..., 1].ravel(), 0.0)


def test_the_variances_of_the_levels_add_up():
    layout = Layout(arrays=300, patients=2, cores=2, spots=2)
    deviations = {"array": 0.2, "patient": 0.5, "core": 0.3, "spot": 0.4}
    logs = levels_of(replace(STILL, **deviations), 5, layout)
    # Products of two that share an array, a patient, a core: what they have in common.
    same = {
        "array": logs[:, 0, 0, 0] * logs[:, 1, 0, 0],
        "patient": logs[:, 0, 0, 0] * logs[:, 0, 1, 0],
        "core": logs[:, 0, 0, 0] * logs[:, 0, 0, 1],
        "spot": logs[:, 0, 0, 0] ** 2,
    }
    common = 0.0
    for level, products in same.items():
        without = common
        common += deviations[level] ** 2
        assert within(products, common), level
    assert not within(same["patient"], without + 0.16)


def test_peptides_vary_by_themselves_but_share_the_gain():
    peptides = [Peptide(1995.9, 50.0), Peptide(2010.9, 50.0)]
    layout = Layout(500, 2, 1, 1)
    half = len(GRID) // 2

    def products(variation):
        x = expected_ions(peptides, layout, BARE, variation, seed=1).X
        logs = np.log(np.stack([x[:, :half].sum(1), x[:, half:].sum(1)]) / 50.0)
        return logs[0] * logs[1]

    assert within(products(replace(STILL, spot=0.4)), 0.0)
    shared = products(replace(STILL, gain=0.4))
    assert within(shared, 0.16) and not within(shared, 0.0)


def test_counts_are_poisson_around_what_is_expected():
    peptides = draw_peptides(1995, 2015, count=4, marking=1, seed=2)
    layout = Layout(20, 5, 2, 2)
    counts = simulate(peptides, layout, Instrument(GRID), seed=4)
    expected = expected_ions(peptides, layout, Instrument(GRID), seed=4)
    np.testing.assert_array_equal(counts.X, np.round(counts.X))
    scaled = (counts.X - expected.X) / np.sqrt(expected.X)
    assert within(scaled.ravel(), 0.0) and within((scaled**2).ravel(), 1.0)
    other = simulate(peptides, layout, Instrument(GRID), seed=5)
    wrong = (other.X - expected.X) / np.sqrt(expected.X)
    assert not within((wrong**2).ravel(), 1.0)


def test_the_baseline_and_the_mass_scale():
    speck = [Peptide(2000.9, 1e-9)]
    device = Instrument(GRID, baseline=20.0, decay=15.0)
    found = expected_ions(speck, Layout(1, 2, 1, 1), device, STILL).X[0]
    rate = found / np.diff(bin_edges(GRID))
    np.testing.assert_allclose(rate, 20 * np.exp(-(GRID - GRID[0]) / 15.0), rtol=1e-6)
    varied = expected_ions(speck, Layout(500, 2, 1, 1), device, replace(STILL, baseline=0.3))
    assert within(np.log(varied.X[:, 7] / found[7]) ** 2, 0.09)
    # The mean mass moves by the shift, spots of an array together by that of the array.
    shifted = [replace(STILL, shift=100.0), replace(STILL, array_shift=100.0)]
    moves = []
    for variation in shifted:
        x = expected_ions([Peptide(2000.9, 1.0)], Layout(400, 2, 1, 1), BARE, variation).X
        masses, shares = form_pattern(2000.9)
        moves.append((x @ GRID / (masses @ shares) - 1).reshape(400, 2) * 1e6)
    assert within(moves[0].ravel() ** 2, 1e4) and within(moves[1][:, 0] ** 2, 1e4)
    assert np.ptp(moves[1], axis=1).max() < 1.0 and np.ptp(moves[0], axis=1).max() > 50


def test_labels_cores_and_arrays_are_a_tree_and_seeds_repeat():
    layout = Layout(arrays=3, patients=4, cores=2, spots=5)
    peptides = draw_peptides(1995, 2015, count=6, marking=2, classes=3)
    found = simulate(peptides, layout, BARE, seed=7)
    assert len(found) == 120 and set(found.labels.tolist()) == {0, 1, 2}
    for inner, outer in (("cores", "patients"), ("patients", "arrays"), ("patients", "labels")):
        pairs = set(
            zip(getattr(found, inner).tolist(), getattr(found, outer).tolist(), strict=True)
        )
        assert len(pairs) == len(set(getattr(found, inner).tolist()))
    places = {
        (a, *c) for a, c in zip(found.arrays.tolist(), found.coordinates.tolist(), strict=True)
    }
    assert len(places) == 120 and found.coordinates.min() == 1
    again, other = (simulate(peptides, layout, BARE, seed=seed) for seed in (7, 8))
    np.testing.assert_array_equal(found.X, again.X)
    assert not np.array_equal(found.X, other.X)


@pytest.mark.parametrize("effect", [HEIGHTS, ISOTOPES])
def test_drawn_peptides_mark_the_classes_they_are_to_mark(effect):
    peptides = draw_peptides(1800, 2200, effect, count=30, marking=4, classes=3, seed=3)
    masses = np.array([peptide.mass for peptide in peptides])
    assert len(peptides) == 30 and (np.diff(masses) > 0.5).all()
    nucleons = np.round(masses / 1.00049)
    off = masses - nucleons * 1.00049
    assert within(off / 0.05, 0.0) and within((off / 0.05) ** 2, 1.0)
    marked = [[p.effects[k] == effect for p in peptides] for k in range(3)]
    assert np.sum(marked, 1).tolist() == [4, 4, 4] and np.sum(marked, 0).max() == 1
    assert sum(p.marks for p in peptides) == 12
    assert peptides == draw_peptides(1800, 2200, effect, count=30, marking=4, classes=3, seed=3)


@pytest.mark.parametrize("seed", [0, 1])
def test_roc_lda_comes_to_the_bayes_error_and_no_further(seed):
    """One peptide, whose logarithm is normal in both classes: the Bayes error is known."""
    effect, variation = Effect(log_height=0.8), replace(STILL, patient=0.5, spot=0.4)
    peptide = Peptide(2000.9, 1e5, effects=(Effect(), effect))
    bayes = norm.cdf(0.4 / np.hypot(0.5, 0.4))
    train, test = (
        expected_ions([peptide], Layout(1000, 2, 1, 1), BARE, variation, seed=2 * seed + part)
        for part in (0, 1)
    )
    held = train.X.mean(0) > 100  # the peaks, and not what is left of them beside
    model = RocLda(features=5).fit(np.log(train.X[:, held]), train.labels)
    right = model.predict(np.log(test.X[:, held])) == test.labels
    assert within(right, bayes)
    # The control: the error without the patients' variation is another.
    assert not within(right, norm.cdf(0.4 / 0.4))


def test_wrong_arguments_are_refused():
    peptide = Peptide(2000.9, 10.0)
    three = Peptide(2000.9, 10.0, effects=(Effect(),) * 3)
    for make, message in (
        (lambda: expected_ions([]), "no peptide"),
        (lambda: expected_ions([peptide, three]), r"effects of \[2, 3\] classes"),
        (lambda: simulate([three], Layout(1, 2, 1, 1)), "2 patients can't have 3"),
        (lambda: Layout(arrays=0), "arrays must be a whole number of 1 or more, got 0"),
        (lambda: Layout(spots=2.0), "spots must be a whole number of 1 or more, got 2.0"),
        (lambda: Layout(cores="2"), "cores must be a whole number of 1 or more, got '2'"),
        (lambda: Variation(core=-1.0), "core must be a finite number of 0 or more, got -1"),
        (lambda: Variation(shift=float("nan")), "shift must be a finite number"),
        (lambda: Instrument(GRID, resolution=0.0), "resolution must be a finite number above 0"),
        (lambda: Instrument(GRID, resolution=np.inf), "resolution must be a finite number"),
        (lambda: Instrument(GRID, baseline=np.inf), "baseline must be a finite number"),
        (lambda: Instrument(GRID[::-1]), "unsorted"),
        (lambda: Peptide(-1.0, 1.0), "mass must be a finite number above 0, got -1.0"),
        (lambda: Peptide(1.0, 1.0, share=1.0), "below 1"),
        (lambda: Peptide(1.0, 1.0, effects=(Effect(),)), "at least 2"),
        (lambda: Peptide(1.0, 1.0, effects=(Effect(), ISOTOPES)), "that has none"),
        (lambda: Effect(log_height=np.inf), "log_height must be a finite number, got inf"),
        (lambda: draw_peptides(1000, 1010), "masses of their own"),
        (lambda: draw_peptides(np.nan, 2000), "low must be a finite number above 0, got nan"),
        (lambda: draw_peptides(2000, 1000), "masses ascend, got 2000 to 1000 Da"),
        (lambda: draw_peptides(1000, 2000, count=3, marking=2), "as many peptides"),
        (
            lambda: draw_peptides(1000, 2000, classes=1),
            "classes must be a whole number of 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
