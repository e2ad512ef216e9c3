"""The experiments on mass spectra: sets, scores, and the commands on small sizes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import beta
from sklearn.neighbors import KNeighborsClassifier

from experiments.spectra.__main__ import main
from experiments.spectra.ablations import VARIANTS, size_of
from experiments.spectra.crossvalidation import (
    core_interval,
    cross_predict,
    cross_predict_roc,
    fold_scores,
    patient_interval,
    scores,
)
from experiments.spectra.learning import some_patients
from experiments.spectra.measured import METHODS
from experiments.spectra.methods import Training
from experiments.spectra.sets import DATA_SETS, load_set
from experiments.spectra.tissue import Tissue, array_folds, tissue_spectra
from iresflow.errors import DataError
from iresflow.spectra.collection import Spectra
from iresflow.spectra.grids import tof_grid

SMALL = "--tissue.low 1990 --tissue.high 2010 --tissue.arrays 4 --tissue.patients 2 "
SMALL += "--tissue.spots 2 --tissue.peptides 4 --tissue.marking 1 "
SMALL += "--training.isotope_epochs 1 --training.residual_epochs 1"


@pytest.fixture
def measured(tmp_path):
    """Small files of the shapes of the measured sets, with classes that are easily told."""
    draws = np.random.default_rng(0)
    root = tmp_path / "spectra"
    root.mkdir()

    def heights(labels, bins):
        _, numbers = np.unique(labels, return_inverse=True)
        peaks = np.eye(numbers.max() + 1)[numbers] @ draws.gamma(
            1.0, 50.0, (numbers.max() + 1, bins)
        )
        return (peaks + draws.gamma(2.0, 2.0, (len(labels), bins))).astype(np.float32)

    isolate = np.repeat(["280", "43", "7"], 10)
    np.savez(
        root / "maldirppa.npz",
        mz=np.linspace(2500, 13000, 60),
        X=heights(isolate, 60),
        isolate=isolate,
        biorep=np.tile(np.repeat(np.arange(1, 6), 2), 3),
    )
    label = np.repeat(["cancer", "normal"], 20)
    patient = np.array([f"{name}{i // 2}" for i, name in enumerate(label)])
    x = heights(label, 50)
    x[3, 7] = -2.0
    np.savez(root / "imac40.npz", mz=np.arange(1000.0, 1200, 4), X=x, label=label, patient=patient)
    species = np.repeat(["a", "b", "c", "d"], 16)
    sample = np.tile(np.repeat([f"s{i}" for i in range(8)], 2), 4)
    grid = np.arange(2000.0, 2150, 3)
    np.savez(
        root / "species96.npz", mz=grid, X=heights(species, 50), species=species, sample=sample
    )
    kind = np.repeat([0, 1, 0, 1], 4)
    masses = np.linspace(1000, 10000, 5000)
    rows = heights(kind, 5000)
    np.savez(
        root / "fiedler16.npz",
        **{f"mz{i}": masses for i in range(16)},
        **{f"I{i}": row for i, row in enumerate(rows)},
    )
    return root


def results(path):
    return json.loads((path / "results.json").read_text())


def test_sets_keep_samples_together_and_hold_no_negative_intensity(measured):
    for name in DATA_SETS:
        found = load_set(name, str(measured))
        nested = np.stack(
            [
                np.unique(found.spectra.cores, return_inverse=True)[1],
                np.unique(found.groups, return_inverse=True)[1],
                np.unique(found.spectra.labels, return_inverse=True)[1],
            ]
        )
        assert len(np.unique(nested[0])) == len(np.unique(nested, axis=1).T)
        assert found.spectra.X.min() >= 0
    serum = load_set("fiedler", str(measured))
    kinds = np.repeat(["control", "cancer", "control", "cancer"], 4)
    np.testing.assert_array_equal(serum.spectra.labels, kinds)
    assert len(serum.recorded) == 5000 and len(serum.spectra.grid) == 4498
    with pytest.raises(ValueError, match="unknown set"):
        load_set("other", str(measured))
    with pytest.raises(DataError, match="IRESFLOW_DATA"):
        load_set("cancer", str(measured / "nowhere"))


def test_the_interval_of_samples_is_the_exact_one():
    # Three samples of four spots; majorities: right, right, and a tie, which goes to class 0.
    labels = np.repeat([0, 1, 1], 4)
    predicted = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1])
    spectra = Spectra(np.ones((12, 2)), [1.0, 2.0], labels, cores=np.repeat([7, 5, 6], 4))
    found = core_interval(spectra, predicted)
    assert found["samples"] == 3 and found["samples right"] == pytest.approx(2 / 3)
    assert found["from"] == pytest.approx(beta.ppf(0.025, 2, 2))
    assert found["to"] == pytest.approx(beta.ppf(0.975, 3, 1))
    both = scores(spectra, predicted)
    assert both["spot"] == pytest.approx((3 / 4 + 6 / 8) / 2)
    assert both["core"] == pytest.approx((1 + 1 / 2) / 2)
    folds = [(np.arange(4, 12), np.arange(4)), (np.arange(4), np.arange(4, 12))]
    assert [score["spot"] for score in fold_scores(spectra, predicted, folds)] == [0.75, 0.75]
    assert [score["core"] for score in fold_scores(spectra, predicted, folds)] == [1.0, 0.5]


def test_the_interval_of_accuracies_knows_that_spots_of_a_patient_are_alike():
    draws = np.random.default_rng(0)
    patients = np.repeat(np.arange(120), 4)
    labels = patients // 80  # 80 patients of one class, 40 of the other
    chance = draws.beta(4, 1, 120)[patients]  # a patient is easy or hard
    right = (draws.random(480) < chance).astype(float)
    spectra = Spectra(np.ones((480, 2)), [1.0, 2.0], labels, cores=patients, patients=patients)
    mean, low, high = patient_interval(spectra, right)
    predicted = np.where(right == 1, labels, 1 - labels)
    assert mean == pytest.approx(scores(spectra, predicted)["spot"])
    each = right.reshape(120, 4).mean(1)
    error = np.sqrt(each[:80].var() / 80 + each[80:].var() / 40) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    # The control: spots as if they were independent would give a narrower interval.
    alone = replace(spectra, patients=np.arange(480))
    _, lower, higher = patient_interval(alone, right)
    assert higher - lower < 0.85 * (high - low)


def test_predictions_are_made_by_other_folds_and_read_again(tmp_path):
    tissue = Tissue(low=1990, high=2010, arrays=4, patients=2, peptides=4, marking=1)
    spectra = tissue_spectra(tissue, "heights")
    folds = array_folds(spectra, 0)
    seen = []

    def make():
        return SimpleNamespace(fit=fit)

    def fit(x, y):
        seen.append(len(x))
        return KNeighborsClassifier(1).fit(x, y)

    file = tmp_path / "one.npy"
    found = cross_predict(make, spectra, folds, file)
    assert seen == [len(train) for train, _ in folds]
    np.testing.assert_array_equal(cross_predict(make, spectra, folds, file), found)
    assert len(seen) == 4
    # Some folds first, and the others later: those that are there are not trained again.
    later = tmp_path / "later.npy"
    some = cross_predict(make, spectra, folds[:2], later)
    tested = np.concatenate([test for _, test in folds[:2]])
    np.testing.assert_array_equal(some[tested], found[tested])
    assert len(seen) == 6
    np.testing.assert_array_equal(cross_predict(make, spectra, folds, later), found)
    assert len(seen) == 8
    # Predictions of other spectra, or of another model, are not taken for these.
    moved = replace(spectra, X=spectra.X + 1)
    cross_predict(make, moved, folds, later)
    assert len(seen) == 12
    cross_predict(lambda: SimpleNamespace(fit=fit, neighbours=1), moved, folds, later)
    assert len(seen) == 16
    # The control: a neighbour that may look at the spectrum itself is always right.
    everything = [(np.arange(len(spectra)), np.arange(len(spectra)))]
    leaked = cross_predict(make, spectra, everything, tmp_path / "leaked.npy")
    assert (leaked == spectra.labels).all() and not (found == spectra.labels).all()
    each = cross_predict_roc(spectra, folds, (5, 20), tmp_path / "roc.npy")
    again = cross_predict_roc(spectra, folds, (5, 20), tmp_path / "roc.npy")
    assert each.keys() == again.keys() == {5, 20}
    np.testing.assert_array_equal(each[20], again[20])
    (other,) = cross_predict_roc(spectra, folds, (20,), tmp_path / "roc.npy").values()
    np.testing.assert_array_equal(each[20], other)
    with pytest.raises(ValueError, match="unknown task"):
        tissue_spectra(tissue, "colours")


def test_the_comparison_by_the_command(tmp_path):
    torch.set_default_dtype(torch.float32)
    quick = "--runs 2 --residual_runs 1 --invertible.steps 2"
    options = [*SMALL.split(), *quick.split(), "--into", str(tmp_path)]
    assert main(["comparison", *options]) == 0
    rows = results(tmp_path)["comparison"]
    assert [(row["task"], row["method"]) for row in rows] == [
        (task, method)
        for task in ("heights", "isotopes")
        for method in ("ROC/LDA", "ResidualNet", "IsotopeNet", "i-ResNet")
    ]
    assert [row["runs"] for row in rows] == [1, 1, 2, 1] * 2
    pairs = [(row["method"], row["against"]) for row in results(tmp_path)["differences"]]
    assert len(pairs) == 2 * 6 and pairs[0] == ("ResidualNet", "ROC/LDA")
    assert rows[2]["thesis, LP"] == "0.962, 1.000" and (tmp_path / "comparison.png").is_file()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npz")}
    assert len(kept) == 2 * 4 * (1 + 1 + 2 + 1)
    assert main(["comparison", *options]) == 0
    assert results(tmp_path)["comparison"] == rows
    assert kept == {file: file.stat().st_mtime_ns for file in kept}


def test_fewer_patients_are_some_of_more_from_all_arrays_and_classes():
    tissue = Tissue(low=1990, high=2010, arrays=4, patients=6, peptides=4, marking=1)
    spectra = tissue_spectra(tissue, "heights")
    train, _ = array_folds(spectra, 0)[0]
    few, more, all_of_them = (some_patients(spectra, train, count) for count in (2, 4, 6))
    assert set(few) < set(more) < set(all_of_them) == set(train)
    for some, count in ((few, 2), (more, 4)):
        for array in np.unique(spectra.arrays[train]):
            inside = some[spectra.arrays[some] == array]
            assert len(np.unique(spectra.patients[inside])) == count
            assert np.bincount(spectra.labels[inside]).tolist() == 2 * [len(inside) // 2]


def test_learning_curves_by_the_command(tmp_path):
    torch.set_default_dtype(torch.float32)
    options = [*SMALL.split(), "--patients", "2,4", "--isotope_spectra", "30"]
    assert main(["learning", *options, "--tasks", "heights", "--into", str(tmp_path)]) == 0
    rows = results(tmp_path)["learning"]
    assert [row["spectra"] for row in rows] == 3 * [12] + 3 * [24]
    assert [row["method"] for row in rows[:3]] == ["ROC/LDA", "linear", "IsotopeNet"]
    assert [row["less ROC/LDA"] == "" for row in rows] == [True, False, False] * 2
    linear = rows[1]["spot"] - rows[0]["spot"]
    assert float(rows[1]["less ROC/LDA"]) == pytest.approx(linear, abs=6e-4)
    assert (tmp_path / "learning.png").is_file()
    with pytest.raises(SystemExit):
        main(["learning", "--patients", "3", "--into", str(tmp_path)])


def test_few_spectra_come_as_often_as_it_takes():
    usual = Training(isotope_epochs=60, residual_epochs=10)
    assert usual.enough(100, isotope=6000, residual=1000) == usual
    few = usual.enough(50, isotope=6000, residual=1000)
    assert (few.isotope_epochs, few.residual_epochs) == (120, 20)
    assert usual.enough(1000, isotope=6000, residual=1000) == usual  # not fewer passes


def test_the_ablations_by_the_command(tmp_path):
    torch.set_default_dtype(torch.float32)
    chosen = ("equidistant grid", "filters in daltons")
    options = [*SMALL.split(), "--variants", ",".join(chosen), "--into", str(tmp_path)]
    assert main(["ablations", *options]) == 0
    rows = results(tmp_path)["ablations"]
    assert [row["variant"] for row in rows] == 2 * list(chosen)
    assert (tmp_path / "ablations.png").is_file()
    with pytest.raises(SystemExit):
        main(["ablations", "--variants", "other", "--into", str(tmp_path)])


def test_variants_differ_from_the_thesis_by_what_their_names_say():
    grid = tof_grid(1950, 2100)
    found = {
        name: size_of(make(grid, Training(), 0), len(grid)) for name, make in VARIANTS.items()
    }
    seen = {name: size["bins seen"] for name, size in found.items()}
    usual = seen["as in the thesis"]
    assert seen["receptive field too small"] < 43 < usual < seen["receptive field too large"] / 2
    assert seen["no local layer"] == seen["equidistant grid"] == usual
    assert seen["filters in daltons"] is None
    assert found["no local layer"]["parameters"] < found["as in the thesis"]["parameters"]


def test_measured_sets_by_the_command(tmp_path, measured):
    torch.set_default_dtype(torch.float32)
    options = "--isotope_spectra 40 --residual_spectra 40 --baseline 5 --sets cancer "
    options += "--training.isotope_epochs 1 --training.residual_epochs 1 "
    options += "--invertible.steps 2 --invertible.bins 8"
    path = tmp_path / "run"
    options = [*options.split(), "--spectra", str(measured), "--into", str(path)]
    assert main(["measured", *options]) == 0
    rows = {row["method"]: row for row in results(path)["measured"]}
    assert list(rows) == list(METHODS)
    assert rows["linear"]["samples right"] == 1.0 and rows["linear"]["samples"] == 20
    assert rows["linear"]["from"] == pytest.approx(0.025 ** (1 / 20))
    assert main(["measured", *options, "--methods", "linear"]) == 0
    assert results(path)["measured"] == [rows["linear"]]
    with pytest.raises(SystemExit):
        main(["measured", *options, "--methods", "other"])


def test_extents_by_the_command(tmp_path, measured, monkeypatch):
    monkeypatch.setenv("IRESFLOW_DATA", str(measured.parent))
    path = tmp_path / "run"
    assert main(["extents", "--masses", "30", "--into", str(path)]) == 0
    grids = {row["grid"]: row for row in results(path)["grids"]}
    assert grids["simulator"]["bins"] == 27607
    assert grids["simulator"]["bins between peaks"] == pytest.approx(6.14, abs=0.01)
    assert grids["cancer"]["bins between peaks"] == pytest.approx(0.25)
    assert results(path)["patterns"]["bins of the largest pattern"] < 43
    # Without the sets, the simulator's grid is drawn alone.
    other = tmp_path / "other"
    monkeypatch.setenv("IRESFLOW_DATA", str(tmp_path / "nowhere"))
    assert main(["extents", "--masses", "30", "--into", str(other)]) == 0
    assert [row["grid"] for row in results(other)["grids"]] == ["simulator"]
