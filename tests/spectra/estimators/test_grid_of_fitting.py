"""Spectra bring their grid along: another one than at fitting is noticed, also of equal length."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from small_spectra import QUICK, small_spectra

from iresflow.spectra import (
    Binning,
    IsotopeNet,
    PhysicalFilters,
    Resampling,
    ResidualNet,
    RocLda,
    SnipBaseline,
    Spectra,
    SquareRoot,
    TopHatBaseline,
    TotalIonCount,
    sensitivity_map,
)

OTHER = r"fitted on a grid of 60 masses, 1000 to 1030, and now the grid is another one, of 60, 10"


@pytest.fixture
def data():
    small = small_spectra(48)
    return Spectra(small.X, small.grid, small.y, small.cores)


def moved(data):
    """The same spectra, said to be a tenth of a dalton heavier."""
    return replace(data, grid=data.grid + 0.1)


TRANSFORMERS = [
    TopHatBaseline(4),
    SnipBaseline(4),
    SquareRoot(),
    TotalIonCount(),
    Resampling(masses=np.linspace(1001.0, 1029.0, 60)),
    Binning(width=1.7),
]


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=lambda t: type(t).__name__)
def test_transformers_give_spectra_for_spectra_and_refuse_other_grids(transformer, data):
    found = clone(transformer).fit_transform(data)
    assert isinstance(found, Spectra)
    assert found.labels is data.labels and found.cores is data.cores
    plain = clone(transformer)
    if "grid" in plain.get_params():
        plain.set_params(grid=data.grid)
    values = plain.fit_transform(data.X)
    assert type(values) is np.ndarray and np.array_equal(values, found.X)
    fitted = clone(transformer).fit(data)
    assert np.array_equal(found.grid, fitted.grid_) and np.array_equal(fitted.grid_in_, data.grid)
    with pytest.raises(ValueError, match=OTHER):
        fitted.transform(moved(data))
    with pytest.raises(ValueError, match="fitted with a grid, and now there is none"):
        fitted.transform(data.X)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    "model",
    [
        RocLda(features=5),
        IsotopeNet(**QUICK | {"epochs": 1}),
        IsotopeNet(filters=PhysicalFilters(0.5, 1.0), **QUICK | {"epochs": 1}),
        ResidualNet(**QUICK | {"epochs": 1}),
    ],
    ids=["roclda", "isotope", "daltons", "residual"],
)
def test_classifiers_remember_the_grid_of_spectra(model, data, tmp_path):
    fitted = clone(model).fit(data, data.labels)
    assert np.array_equal(fitted.grid_, data.grid)
    named = clone(model).set_params(grid=data.grid).fit(data.X, data.labels)
    assert np.array_equal(named.predict_proba(data.X), fitted.predict_proba(data))
    assert np.array_equal(named.predict_proba(data), fitted.predict_proba(data))
    fitted.save(tmp_path / "model.pt")
    for own in (fitted, type(model).load(tmp_path / "model.pt")):
        with pytest.raises(ValueError, match=OTHER):
            own.predict(moved(data))
        with pytest.raises(ValueError, match="fitted with a grid, and now there is none"):
            own.predict(data.X)


def test_spectra_are_refused_by_what_was_fitted_on_arrays(data):
    for fitted in (RocLda(features=5).fit(data.X, data.labels), SquareRoot().fit(data.X)):
        predict = getattr(fitted, "predict", None) or fitted.transform
        with pytest.raises(ValueError, match="fitted without a grid, and now there is one"):
            predict(data)


@pytest.mark.parametrize("kind", [RocLda, Resampling])
def test_the_grid_that_is_named_is_that_of_the_spectra(kind, data):
    with pytest.raises(ValueError, match="grid= names another one, of 60, 1000.1 to 1030.1"):
        kind(grid=data.grid + 0.1).fit(data, data.labels)


def test_a_pipeline_notices_at_its_first_step(data):
    model = make_pipeline(SnipBaseline(5), Binning(width=1.7), RocLda(features=5))
    model.fit(data, data.labels)
    assert np.array_equal(model[-1].grid_, model[1].grid_)
    with pytest.raises(ValueError, match=OTHER):
        model.predict(moved(data))
    # The remedy that the message names.
    wider = data.on(np.linspace(1000.0, 1030.0, 121))
    assert model.predict(wider.on(data.grid)).shape == (48,)


def test_cross_validation_takes_spectra_as_it_takes_arrays(data):
    model = make_pipeline(SquareRoot(), RocLda(features=5))
    cut = GroupKFold(3)
    for one in (model, KNeighborsClassifier(3)):  # scikit-learn's own see the intensities
        found = cross_val_predict(one, data, data.labels, groups=data.cores, cv=cut)
        plain = cross_val_predict(one, data.X, data.labels, groups=data.cores, cv=cut)
        assert (found == plain).all()
    assert data.shape == (48, 60)
    assert np.asarray(data) is data.X and np.array(data) is not data.X
    assert np.asarray(data, np.float32).dtype == np.float32


@pytest.mark.usefixtures("float32")
def test_maps_are_of_the_grid_of_fitting(data):
    model = IsotopeNet(**QUICK | {"epochs": 1}).fit(data, data.labels)
    found = sensitivity_map(model, data, "adeno")
    assert np.array_equal(found.masses, data.grid)
    with pytest.raises(ValueError, match=OTHER):
        sensitivity_map(model, moved(data), "adeno")
