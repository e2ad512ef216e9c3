"""Masked arrays: what a mask hides is not known, and must not come back by NumPy's conversions."""

import numpy as np
import pytest
from small_spectra import QUICK, small_spectra

from iresflow.spectra import (
    IsotopeNet,
    RocLda,
    Spectra,
    SquareRoot,
    balanced_accuracy,
    bin_edges,
    core_balanced_accuracy,
    gather,
    group_folds,
    majority_vote,
    roc_areas,
    sensitivity_map,
)
from iresflow.spectra.grids import resample

pytestmark = pytest.mark.usefixtures("float32")

SMALL = small_spectra(24)
X, Y, GRID, CORES = SMALL.X, SMALL.y, SMALL.grid, SMALL.cores
PLACES = np.arange(72).reshape(24, 3)


def hidden(values):
    """The same with one masked entry."""
    return np.ma.array(values, mask=np.arange(np.size(values)).reshape(np.shape(values)) == 1)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("X", lambda: RocLda().fit(hidden(X), Y)),
        ("y", lambda: RocLda().fit(X, hidden(Y))),
        ("grid", lambda: RocLda(grid=hidden(GRID)).fit(X, Y)),
        ("X", lambda: RocLda(features=3).fit(X, Y).predict(hidden(X))),
        ("X", lambda: RocLda().fit(list(hidden(X)), Y)),  # a list of masked rows
        ("groups", lambda: IsotopeNet(**QUICK).fit(X, Y, groups=hidden(CORES))),
        ("X", lambda: SquareRoot().fit(X).transform(hidden(X))),
        ("X", lambda: roc_areas(hidden(X), Y)),
        ("X", lambda: Spectra(hidden(X), GRID)),
        ("grid", lambda: Spectra(X, hidden(GRID))),
        ("labels", lambda: Spectra(X, GRID, hidden(Y))),
        ("cores", lambda: Spectra(X, GRID, cores=hidden(CORES))),
        ("coordinates", lambda: Spectra(X, GRID, coordinates=hidden(PLACES))),
        ("which", lambda: Spectra(X, GRID)[hidden(CORES == 0)]),
        ("intensities", lambda: gather([GRID], hidden(X[:1]))),
        ("grid", lambda: gather([hidden(GRID)], X[:1])),
        ("grid", lambda: bin_edges(hidden(GRID))),
        ("spectra", lambda: resample(hidden(X), GRID, GRID[2:-2])),
        ("labels", lambda: group_folds(hidden(Y), CORES)),
        ("groups", lambda: group_folds(Y, hidden(CORES))),
        ("cores", lambda: group_folds(Y, CORES, cores=hidden(CORES))),
        ("labels", lambda: balanced_accuracy(hidden(Y), Y)),
        ("predicted", lambda: balanced_accuracy(Y, hidden(Y))),
        ("predicted", lambda: majority_vote(hidden(Y), CORES)),
        ("labels", lambda: core_balanced_accuracy(hidden(CORES % 2), CORES % 2, CORES)),
    ],
)
def test_masked_entries_are_refused(name, call):
    with pytest.raises(ValueError, match=f"{name} has masked entries, whose values are not known"):
        call()


def test_masks_that_hide_nothing_change_nothing():
    plain = RocLda(features=3).fit(X, Y).predict_proba(X)
    bare = np.ma.array(X, mask=np.zeros_like(X, bool))
    np.testing.assert_array_equal(RocLda(features=3).fit(bare, Y).predict_proba(bare), plain)


def test_a_map_of_masked_spectra_is_refused():
    model = IsotopeNet(grid=GRID, **QUICK | {"epochs": 1}).fit(X, Y)
    with pytest.raises(ValueError, match="X has masked entries"):
        sensitivity_map(model, hidden(X), "adeno")


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (np.ones(5, bool), "the mask has 5 entries, and there are 24 spectra"),
        ([24], "there is no spectrum 24: there are 24"),
        ([-25], "there is no spectrum -25"),
        (3, "one dimension"),
        (np.ones((24, 60), bool), "one dimension"),
        ((0, 1), "one dimension"),  # which NumPy takes for a spectrum and a bin
        ("a", "one dimension"),
        ([1.5], "whole numbers or a mask"),
        ([], "whole numbers or a mask"),
    ],
)
def test_spectra_that_there_are_not_are_refused(which, words):
    with pytest.raises(ValueError, match=words):
        Spectra(X, GRID)[which]


def test_spectra_are_chosen_by_places_masks_and_slices():
    spectra = Spectra(X, GRID, Y, coordinates=PLACES)
    for which in (
        slice(3, 5),
        [3, 4],
        [-21, -20],
        ([3, 4], ...),
        np.arange(24) == 3,
    ):
        places = np.arange(24)[which]
        found = spectra[which]
        np.testing.assert_array_equal(found.X, X[places])
        np.testing.assert_array_equal(found.coordinates, PLACES[places])
        assert found.labels.tolist() == Y[places].tolist()


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"coordinates": PLACES + 0.5}, "whole numbers of pixels"),
        ({"coordinates": PLACES.astype(str)}, "coordinates holds no real numbers"),
        ({"arrays": np.full(24, "NaT", "M8[D]")}, "arrays holds NaT"),
        ({"grid": GRID + 1j}, "grid holds no real numbers: values of type complex128"),
        ({"grid": [[1.0], [2.0, 3.0]]}, "grid holds no real numbers"),
        ({"grid": None}, "a grid has two or more masses"),
    ],
)
def test_what_is_no_grid_place_or_name_is_refused(known, words):
    with pytest.raises(ValueError, match=words):
        Spectra(**{"X": X, "grid": GRID} | known)
