"""Transformers against written-out definitions."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from small_spectra import small_spectra

from iresflow.spectra import (
    Binning,
    Resampling,
    RocLda,
    SnipBaseline,
    SquareRoot,
    TopHatBaseline,
    TotalIonCount,
    bin_edges,
)


@pytest.fixture
def small():
    return small_spectra(20)


def everything(grid):
    return [
        TopHatBaseline(4),
        SnipBaseline(4),
        SquareRoot(),
        TotalIonCount(),
        Resampling(grid, grid[5:40] + 0.1),
        Binning(grid, 1.7),
    ]


def test_each_spectrum_is_transformed_by_itself(small):
    for transformer in everything(small.grid):
        whole = transformer.fit(small.X).transform(small.X)
        alone = transformer.fit(small.X[:1]).transform(small.X[7:8])
        assert whole[7:8] == pytest.approx(alone, abs=1e-12)
        assert np.isfinite(whole).all() and (whole >= 0).all()


def test_the_opening_is_the_highest_of_the_lowest():
    x = small_spectra(3, bins=30).X
    half = 3
    found = TopHatBaseline(half).fit_transform(x)
    reflected = np.pad(x, ((0, 0), (2 * half, 2 * half)), mode="symmetric")

    def window(values, reduce):
        width = 2 * half + 1
        return np.stack(
            [reduce(values[:, i : i + width], 1) for i in range(values.shape[1] - width + 1)], 1
        )

    opened = window(window(reflected, np.min), np.max)
    inner = slice(2 * half, -2 * half)  # where no reflection reaches
    assert found[:, inner] == pytest.approx((x - opened)[:, inner])


def test_snip_by_its_definition():
    x = small_spectra(2, bins=25).X
    baseline = x.copy()
    for p in (4, 3, 2, 1):
        before = baseline.copy()
        for i in range(p, 25 - p):
            baseline[:, i] = np.minimum(before[:, i], (before[:, i - p] + before[:, i + p]) / 2)
    assert SnipBaseline(4).fit_transform(x) == pytest.approx(x - baseline)


@pytest.mark.parametrize("transformer", [TopHatBaseline(12), SnipBaseline(12)])
def test_peaks_stay_and_the_baseline_goes(transformer):
    grid = np.arange(200.0)
    slope = 50 * np.exp(-grid / 80)
    peak = 30 * np.exp(-((grid - 90) ** 2) / 2 / 2**2)
    found = transformer.fit_transform((slope + peak)[None])[0]
    away = np.abs(grid - 90) > 15
    assert found[away].max() < 0.15 * slope[:100].max()
    assert found[90] == pytest.approx(30, rel=0.15)


def test_roots_and_total_ion_counts(small):
    assert SquareRoot().fit_transform(small.X) ** 2 == pytest.approx(small.X)
    found = TotalIonCount().fit_transform(small.X)
    assert found.sum(1) == pytest.approx(1)
    assert found * small.X.sum(1, keepdims=True) == pytest.approx(small.X)
    empty = small.X.copy()
    empty[4] = 0
    with pytest.raises(ValueError, match="spectrum 4 is empty"):
        TotalIonCount().fit_transform(empty)


def test_resampling_is_the_mean_of_the_interpolant(small):
    masses = np.linspace(1003.0, 1025.0, 17)
    found = Resampling(small.grid, masses).fit(small.X)
    edges = bin_edges(masses)
    fine = np.linspace(edges[:-1], edges[1:], 20_001)  # (points, new bins)
    for row, x in zip(found.transform(small.X), small.X, strict=True):
        assert row == pytest.approx(np.interp(fine, small.grid, x).mean(0), abs=2e-3)
    assert np.array_equal(found.grid_, masses)


def test_the_default_is_an_equidistant_grid():
    grid = np.linspace(30.0, 40.0, 50) ** 2
    resampling = Resampling(grid)
    found = resampling.fit_transform(3 * grid[None])
    assert np.diff(resampling.grid_) == pytest.approx(700 / 49)
    assert found[0, 1:-1] == pytest.approx(3 * resampling.grid_[1:-1])  # a line stays one


def test_binning_keeps_sums_and_places():
    grid = np.linspace(30.0, 32.0, 50) ** 2
    edges = bin_edges(grid)
    binning = Binning(grid, 3.0)
    x = np.random.default_rng(0).random((3, 50))
    found = binning.fit_transform(x)
    assert found.sum(1) == pytest.approx(x.sum(1))
    assert np.diff(binning.grid_) == pytest.approx(3.0)
    ends = np.append(binning.grid_ - 1.5, binning.grid_[-1] + 1.5)
    assert ends[0] == pytest.approx(edges[0]) and ends[-1] >= edges[-1] > ends[-2]
    # By the integral up to each edge: intensity is spread evenly over its bin.
    upto = np.concatenate([np.zeros((3, 1)), x.cumsum(1)], 1)
    integral = np.stack([np.interp(ends, edges, row) for row in upto])
    assert found == pytest.approx(np.diff(integral, axis=1))


def test_binning_by_a_divisor_sums_whole_bins():
    grid = np.arange(0.5, 12.0)  # edges 0 .. 12
    assert Binning(grid, 4.0).fit_transform(np.ones((1, 12))) == pytest.approx(4.0)
    assert Binning(grid, 3.0).fit(np.ones((1, 12))).grid_ == pytest.approx([1.5, 4.5, 7.5, 10.5])


def test_in_a_pipeline_a_classifier_gets_the_new_grid(small):
    resampling = Resampling(small.grid, np.linspace(1001.0, 1029.0, 40))
    model = make_pipeline(resampling, TotalIonCount(), RocLda(features=4))
    model.fit(small.X, small.y)
    assert model[-1].n_features_in_ == 40
    with pytest.raises(ValueError, match="X has 59 features, but Resampling is expecting 60"):
        model.predict(small.X[:, 1:])


@pytest.mark.parametrize(
    ("transformer", "words"),
    [
        (TopHatBaseline(0), "half_width must be a whole number of 1 or more, got 0"),
        (SnipBaseline(2.5), "iterations must be a whole number of 1 or more, got 2.5"),
        (Resampling(np.arange(1.0, 60.0)), "the grid has 59 masses, and the spectra 60 bins"),
        (Resampling(np.arange(1.0, 61.0)[::-1]), "got unsorted"),
        (
            Resampling(np.arange(1.0, 61.0), np.array([70.0, 80.0])),
            "leaves the one of the",
        ),
        (Resampling(np.arange(1.0, 61.0), np.array([2.0, 2.0])), "got twice"),
        (Binning(np.arange(1.0, 61.0), 0.5), "bins are up to 1 Da wide, and the new ones would"),
        (Binning(np.arange(1.0, 61.0), -1.0), "width must be a finite number above 0"),
    ],
)
def test_bad_parameters_are_refused(transformer, words, small):
    with pytest.raises(ValueError, match=words):
        transformer.fit(small.X)


def test_bad_intensities_are_refused(small):
    for transformer in everything(small.grid):
        for value, words in ((-1.0, "Negative values"), (np.nan, "contains NaN")):
            wrong = small.X.copy()
            wrong[2, 3] = value
            with pytest.raises(ValueError, match=words):
                transformer.fit(wrong)
            with pytest.raises(ValueError, match=words):
                transformer.fit(small.X).transform(wrong)
