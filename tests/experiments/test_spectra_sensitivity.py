"""The experiment on sensitivity maps: what is beside a peptide, and what would be by chance."""

import json

import numpy as np
import pytest
from scipy.stats import hypergeom

from experiments.spectra.__main__ import main
from experiments.spectra.sensitivity import beside, by_chance, names_of
from iresflow.spectra import ISOTOPES, Effect, Peptide


def test_masses_are_beside_the_peaks_of_peptides():
    found = beside(np.array([999.7, 1001.0, 1003.3]), np.array([1000.0, 1002.0]), 0.35, 2)
    assert found.tolist() == [[True, False], [True, False], [False, True]]
    # Without later peaks, and with less tolerance.
    assert beside(np.array([999.7, 1001.0]), np.array([1000.0]), 0.35, 0).tolist() == [[1], [0]]
    assert not beside(np.array([999.7]), np.array([1000.0]), 0.25, 2).any()


def test_chance_is_that_of_drawing_peptides():
    # Four of ten peptides have a mass beside them, two of the three that are marked.
    near = np.zeros((4, 10), bool)
    near[np.arange(4), [0, 1, 5, 6]] = True
    marked = np.isin(np.arange(10), [0, 1, 9])
    draws = 20_000
    found = by_chance(near, marked, draws, seed=0)
    drawn = hypergeom(10, 4, 3)
    assert found["with names"] == 2
    assert abs(found["by chance"] - drawn.mean()) < 4 * drawn.std() / draws**0.5
    true = drawn.sf(1)
    error = 4 * (true * (1 - true) / draws) ** 0.5 + 1 / draws
    assert abs(found["probability"] - true) < error
    assert abs(drawn.sf(2) - true) > error  # the control: more than observed is another question


def test_names_have_the_class_that_is_marked():
    plain = Peptide(1000.0, 60.0, 0.25)
    first = Peptide(1010.04, 60.0, 0.25, (ISOTOPES, Effect()))
    second = Peptide(1020.0, 60.0, 0.25, (Effect(), ISOTOPES))
    assert names_of([plain, first, second]) == {"1010.0 (0)": 1010.04, "1020.0 (1)": 1020.0}


@pytest.mark.usefixtures("float32")
def test_maps_by_the_command(tmp_path):
    small = "--tissue.low 1990 --tissue.high 2010 --tissue.arrays 4 --tissue.patients 2 "
    small += "--tissue.spots 2 --tissue.peptides 4 --tissue.marking 1 --peaks 5 --draws 20 "
    small += "--training.isotope_epochs 1 --tasks isotopes"
    assert main(["sensitivity", *small.split(), "--into", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    (row,) = found["sensitivity"]
    assert row["peaks"] == len(found["peaks-isotopes"]) == 5
    named = [peak["peptide (its class)"] for peak in found["peaks-isotopes"]]
    assert row["with names"] == sum(map(bool, named)) and row["peptides"].endswith(" of 2")
    sizes = [abs(peak["value"]) for peak in found["peaks-isotopes"]]
    assert sizes == sorted(sizes, reverse=True)
    assert (tmp_path / "sensitivity-isotopes.png").is_file()
