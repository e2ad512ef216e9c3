"""Whatever is passed for a parameter, it is taken or refused by one sentence that names it."""

import inspect

import numpy as np
import pytest
from small_spectra import QUICK, small_spectra

from iresflow.spectra import (
    BinFilters,
    Binning,
    Effect,
    Instrument,
    IsotopeNet,
    IsotopeNetwork,
    Layout,
    Peptide,
    PhysicalConvolution,
    PhysicalFilters,
    Resampling,
    ResidualNet,
    ResidualNetwork,
    RocLda,
    SnipBaseline,
    Spectra,
    TopHatBaseline,
    Variation,
    count_parameters,
    draw_peptides,
    equidistant_grid,
    expected_ions,
    fit_each,
    gather,
    group_folds,
    isotope_pattern,
    load_estimator,
    pattern_bins,
    pattern_extent,
    read_imzml,
    read_text,
    receptive_field,
    sensitivity_map,
    simulate,
    suggest_architecture,
    tof_grid,
)

pytestmark = pytest.mark.usefixtures("float32")

SMALL = small_spectra(24)
PEPTIDES = draw_peptides(1980.0, 2010.0, count=4, marking=1)
TISSUE = {"layout": Layout(2, 2, 1, 1), "instrument": Instrument(tof_grid(1975.0, 2020.0))}

# What is refused, and arguments with which it works.
CALLS = {
    BinFilters: {},
    Effect: {},
    Instrument: {"grid": SMALL.grid},
    IsotopeNetwork: {"bins": 60, "classes": 2},
    Layout: {},
    Peptide: {"mass": 2000.0, "ions": 10.0, "share": 0.5},
    PhysicalConvolution: {
        "inputs": 1,
        "maps": 1,
        "grid": SMALL.grid,
        "masses": SMALL.grid,
        "spacing": 0.5,
    },
    PhysicalFilters: {},
    ResidualNetwork: {"bins": 60, "classes": 2},
    Variation: {},
    draw_peptides: {"low": 1980.0, "high": 2010.0, "count": 4, "marking": 1},
    equidistant_grid: {"low": 1980.0, "high": 2010.0},
    expected_ions: {"peptides": PEPTIDES, **TISSUE},
    isotope_pattern: {"mass": 2000.0},
    pattern_bins: {"mass": 1010.0, "grid": SMALL.grid, "peak_width": 0.5},
    pattern_extent: {"mass": 1010.0, "peak_width": 0.5},
    simulate: {"peptides": PEPTIDES, **TISSUE},
    suggest_architecture: {"grid": tof_grid(1000.0, 1050.0)},
    tof_grid: {"low": 1980.0, "high": 2010.0},
}
ESTIMATORS = {
    IsotopeNet: QUICK | {"epochs": 1},
    ResidualNet: QUICK | {"epochs": 1},
    RocLda: {"features": 3},
    SnipBaseline: {},
    TopHatBaseline: {},
    Binning: {"grid": SMALL.grid},
    Resampling: {"grid": SMALL.grid},
}
NOTHING = object()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_arguments_of_another_type_are_refused_by_name(call):
    call(**CALLS[call])
    for name in inspect.signature(call).parameters:
        for value in (NOTHING, "a", 1 + 1j):
            with pytest.raises(ValueError, match=name):
                call(**CALLS[call] | {name: value})


@pytest.mark.parametrize("kind", ESTIMATORS, ids=lambda kind: kind.__name__)
def test_parameters_of_estimators_are_refused_by_name(kind):
    kind(**ESTIMATORS[kind]).fit(SMALL.X, SMALL.y)
    for name in inspect.signature(kind).parameters:
        for value in (NOTHING, "a", 1 + 1j):
            with pytest.raises(ValueError, match=name):
                kind(**ESTIMATORS[kind] | {name: value}).fit(SMALL.X, SMALL.y)


@pytest.mark.parametrize("seed", ["a", None, 1.5, -1, True, [1, 2]])
def test_seeds_that_would_not_repeat_are_refused(seed):
    for call in (simulate, expected_ions, draw_peptides):
        with pytest.raises(ValueError, match="seed must be a whole number of 0 or more, got"):
            call(**CALLS[call], seed=seed)
    assert draw_peptides(**CALLS[draw_peptides], seed=np.int64(3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": True}, "validation is a share from 0 to 1, .* got True"),
        ({"validation": np.nan}, "validation .* got nan"),
        ({"validation": 1.0}, "validation .* got 1.0"),
        ({"validation": 24}, "a count below that of the 24 spectra, or None, got 24"),
        ({"validation": [1]}, r"validation .* got \[1\]"),
        ({"random_state": -1}, "random_state: Seed must be between 0"),
        ({"device": None}, "device must be of the class str or int or device, got None"),
        ({"verbose": None}, "verbose must be True or False, got None"),
    ],
)
def test_ranges_of_parameters(options, words):
    with pytest.raises(ValueError, match=words):
        IsotopeNet(**options).fit(SMALL.X, SMALL.y)


def test_arguments_that_are_no_parameters_are_refused_too(tmp_path):
    spectra = Spectra(SMALL.X, SMALL.grid, SMALL.y)
    roc = RocLda(features=3).fit(SMALL.X, SMALL.y)
    network = IsotopeNet(**QUICK | {"epochs": 1}).fit(spectra, SMALL.y)
    found = sensitivity_map(network, spectra, "adeno")
    for call, words in (
        (lambda: fit_each(roc, SMALL.X, SMALL.y, 5), "features must be of the class Iterable"),
        (lambda: fit_each(None, SMALL.X, SMALL.y, [5]), "model must be of the class RocLda"),
        (lambda: group_folds(SMALL.y, SMALL.cores, 4), "splitter splits groups .* got 4"),
        (lambda: sensitivity_map(roc, SMALL.X, "adeno"), "model must be of .* NetworkClassifier"),
        (
            lambda: sensitivity_map(network, spectra, "adeno", SMALL.grid + 1),
            "now the grid is another one, of 60, 1001 to",
        ),
        (lambda: found.peaks(2.5), "count must be a whole number of 1 or more, got 2.5"),
        (lambda: found.peaks(tolerance=np.inf), "tolerance must be a finite number above 0"),
        (lambda: found.peaks(isotopes=-1), "isotopes must be a whole number of 0 or more"),
        (lambda: found.peaks(names={"a": np.nan}), "names.*a.* must be a finite number above 0"),
        (lambda: found.peaks(names=["a"]), "names must be of the class Mapping"),
        (lambda: count_parameters(roc), "a network or a fitted estimator with one is needed"),
        (lambda: receptive_field(IsotopeNet()), "a network or a fitted estimator with one"),
        (lambda: gather(3, [1.0]), "masses and intensities are sequences"),
        (lambda: gather([SMALL.grid], SMALL.X[:1], names=["a", "b"]), "1 spectra have 2 names"),
        (lambda: read_text(3), "paths must be of the class Iterable"),
        (lambda: read_imzml(None), "path must be of the class str or PathLike"),
        (lambda: load_estimator(None), "path must be of the class str or PathLike"),
        (lambda: roc.save(None), "path must be of the class str or PathLike"),
        (lambda: simulate([1, 2]), r"peptides\[0\] must be of the class Peptide, got 1"),
        (lambda: Peptide(2000.0, 1.0, 0.5, (1, 2)), r"effects\[0\] must be of the class Effect"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert count_parameters(network) == count_parameters(network.network_)
