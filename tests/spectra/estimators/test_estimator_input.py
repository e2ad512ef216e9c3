"""What estimators refuse, by one clear error each: bad intensities, grids, labels, parameters."""

import numpy as np
import pytest
import torch
from small_spectra import QUICK

from iresflow.errors import NonFiniteError
from iresflow.spectra import IsotopeNet, PhysicalFilters, ResidualNet, RocLda

pytestmark = pytest.mark.usefixtures("float32")


@pytest.mark.parametrize("kind", [IsotopeNet, ResidualNet, RocLda])
def test_bad_input_is_one_clear_error(kind, small):
    quick = {} if kind is RocLda else QUICK | {"epochs": 1}
    for value, words in (
        (-0.5, "Negative values in data passed to X: .* got -0.5 in spectrum 3"),
        (np.nan, "contains NaN"),
        (np.inf, "contains infinity"),
    ):
        wrong = small.X.copy()
        wrong[3, 5] = value
        with pytest.raises(ValueError, match=words):
            kind(**quick).fit(wrong, small.y)
        fitted = kind(**quick).fit(small.X, small.y)
        with pytest.raises(ValueError, match=words):
            fitted.predict(wrong)
    with pytest.raises(ValueError, match="all 60 spectra are of one class, adeno"):
        kind(**quick).fit(small.X[::2], small.y[::2])
    for grid, words in (
        (small.grid[::-1], "masses rise strictly, got unsorted"),
        (np.round(small.grid), "masses rise strictly, got twice"),
        (small.grid[:-1], "the grid has 59 masses, and the spectra 60 bins"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(grid=grid, **quick).fit(small.X, small.y)


def test_nan_is_never_a_class(small):
    model = IsotopeNet(**QUICK | {"epochs": 1}).fit(small.X, small.y)
    with pytest.raises(NonFiniteError, match="far from those of fitting, up to 1e\\+300"):
        model.predict(np.full((1, 60), 1e300))
    with torch.no_grad():
        model.network_.read_out.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match="the network gives NaN"):
        model.predict(small.X)


@pytest.mark.parametrize("kind", [IsotopeNet, RocLda])
def test_another_grid_than_at_fitting_is_refused(kind, small):
    quick = {} if kind is RocLda else QUICK | {"epochs": 1}
    model = kind(grid=small.grid, **quick).fit(small.X, small.y)
    with pytest.raises(ValueError, match=f"X has 59 features, but {kind.__name__} is expecting"):
        model.predict(small.X[:, 1:])
    model.set_params(grid=small.grid + 0.1)
    with pytest.raises(ValueError, match="now the grid is another one, of 60, 1000.1 to"):
        model.predict(small.X)
    model.set_params(grid=None)
    with pytest.raises(ValueError, match="fitted with a grid, and now there is none"):
        model.predict(small.X)
    model.set_params(grid=small.grid.tolist())
    model.predict(small.X)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": "3"}, "epochs must be a whole number of 1 or more, got '3'"),
        ({"batch_size": np.inf}, "batch_size must be a whole number of 1 or more, got inf"),
        ({"shift": None}, "shift must be a finite number of 0 or more, got None"),
        ({"epochs": 0}, "epochs must be a whole number of 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number of 1 or more, got 2.5"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"shift": -1.0}, "shift must be a finite number of 0 or more, got -1.0"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"dropout": None}, "dropout must be at least 0 and below 1, got None"),
        ({"local_kernel": 2}, "odd, got 2"),
        ({"local_kernel": None}, "local_kernel must be a whole number of 1 or more, got None"),
        ({"filters": "daltons"}, "filters are BinFilters, PhysicalFilters or None, got 'daltons'"),
        ({"validation": 2.0}, "validation is a share from 0 to 1, .* got 2.0"),
        ({"device": "abacus"}, "abacus"),
        ({"class_weight": "fair"}, "class_weight is a weight for each class, 'balanced' or None"),
        ({"class_weight": {"other": 2.0}}, "class_weight names 'other', and classes are"),
        ({"class_weight": {"adeno": 0.0}}, "class_weight must be a finite number above 0"),
    ],
)
def test_bad_parameters_are_refused(options, words, small):
    with pytest.raises(ValueError, match=words):
        IsotopeNet(**options).fit(small.X, small.y)


def test_physical_filters_need_a_grid(small):
    with pytest.raises(ValueError, match="need the masses of the bins: grid="):
        IsotopeNet(filters=PhysicalFilters(), **QUICK).fit(small.X, small.y)


def test_groups_are_one_name_for_each_spectrum(small):
    nameless = np.where(small.cores == 3, np.nan, small.cores)
    for groups, words in (
        (small.cores[1:], r"groups has the shape \(119,\); \(120,\) is needed"),
        (small.cores[:, None], r"groups has the shape \(120, 1\)"),
        (nameless, "groups holds NaN"),
        (np.where(small.cores == 3, None, small.cores), "groups holds None or values of several"),
    ):
        for validation in (None, 0.25):
            with pytest.raises(ValueError, match=words):
                IsotopeNet(validation=validation, epochs=1).fit(small.X, small.y, groups=groups)
    # A class that is one group alone is held out whole, so that none of it would be learnt from.
    with pytest.raises(ValueError, match="all spectra of class .* are held out"):
        IsotopeNet(validation=0.5, epochs=1, random_state=0).fit(
            small.X, small.y, groups=small.y == "adeno"
        )
