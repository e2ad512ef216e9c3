"""The baseline against scipy's Mann-Whitney test and scikit-learn's discriminant analysis."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from small_spectra import small_spectra

from iresflow.spectra import RocLda, fit_each, roc_areas
from iresflow.spectra.estimators import roc_lda as module


@pytest.mark.parametrize("classes", [2, 3])
def test_areas_are_the_mann_whitney_statistics(classes, monkeypatch):
    monkeypatch.setattr(module, "COLUMNS", 7)  # so that bins are ranked in parts
    data = small_spectra(61, bins=23, classes=classes)
    areas = roc_areas(data.X, data.y)
    for row, label in enumerate(np.unique(data.y)):
        own = data.y == label
        statistics = [mannwhitneyu(x[own], x[~own]).statistic for x in data.X.T]
        assert areas[row] == pytest.approx(np.array(statistics) / own.sum() / (~own).sum())
        scores = [roc_auc_score(own, x) for x in data.X.T]  # with its ties
        assert areas[row] == pytest.approx(scores)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_it_is_the_discriminant_of_the_best_bins(classes, weights):
    data = small_spectra(100, classes=classes)
    uneven = np.arange(100) % 7 < 5  # classes of different sizes
    X, y = data.X[uneven], data.y[uneven]
    model = RocLda(features=6, class_weight=weights).fit(X, y)
    distance = np.abs(roc_areas(X, y) - 0.5).max(0)
    best = np.argsort(-distance, kind="stable")[:6]
    assert set(model.selected_) == set(best)
    assert distance[best].min() >= np.delete(distance, best).max()
    priors = None if weights is None else np.full(classes, 1 / classes)
    oracle = LinearDiscriminantAnalysis(priors=priors).fit(X[:, best], y)
    assert model.predict_proba(X) == pytest.approx(oracle.predict_proba(X[:, best]), abs=1e-10)
    assert (model.predict(X) == oracle.predict(X[:, best])).all()


def test_lower_bins_count_as_much_as_higher_ones():
    data = small_spectra()
    X = data.X.copy()
    X[:, 7] = np.where(data.y == "adeno", 0.0, 100.0)
    X[:, 31] = np.where(data.y == "adeno", 100.0, 0.0)
    with pytest.raises(ValueError, match="the 2 best bins are constant"):
        RocLda(features=2).fit(X, data.y)
    X[:, [7, 31]] += np.random.default_rng(0).random((120, 2))
    assert set(RocLda(features=2).fit(X, data.y).selected_) == {7, 31}


def test_many_numbers_of_bins_at_once():
    data = small_spectra()
    found = fit_each(RocLda(grid=data.grid, class_weight="balanced"), data.X, data.y, [1, 5, 60])
    for count, model in found.items():
        alone = RocLda(features=count, grid=data.grid, class_weight="balanced")
        alone.fit(data.X, data.y)
        assert np.array_equal(model.predict_proba(data.X), alone.predict_proba(data.X))
        assert model.get_params()["features"] == count == len(model.selected_)


def test_more_features_than_bins_are_all_bins():
    data = small_spectra()
    assert len(RocLda(features=500).fit(data.X, data.y).selected_) == 60
    for features in (0, 2.5):
        with pytest.raises(ValueError, match="features must be a whole number"):
            RocLda(features=features).fit(data.X, data.y)
    with pytest.raises(ValueError, match="features must be a whole number"):
        fit_each(RocLda(), data.X, data.y, [0])
