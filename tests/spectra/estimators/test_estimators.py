"""The networks as scikit-learn estimators: what the library asks for, and what spectra ask for."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.class_weight import compute_class_weight
from small_spectra import QUICK, small_spectra

from iresflow.spectra import (
    BinFilters,
    IsotopeNet,
    PhysicalFilters,
    ResidualNet,
    RocLda,
    SnipBaseline,
    SquareRoot,
    TopHatBaseline,
    TotalIonCount,
    receptive_field,
)
from iresflow.spectra.estimators.classifier import weights_of_classes
from iresflow.spectra.estimators.objective import WeightedCrossEntropy
from iresflow.training.loop.batches import Batch

# In which convolutions are quick; predictions are compared exactly.
pytestmark = pytest.mark.usefixtures("float32")

NEGATIVE = "the check passes negative intensities, which are refused"
UNLEARNT = "two features are no spectrum, and the check expects an accuracy of 0.83 on them"
EXPECTED_FAILURES = {
    "RocLda": {
        "check_class_weight_classifiers": NEGATIVE,
        "check_decision_proba_consistency": NEGATIVE,
    },
    "IsotopeNet": {
        "check_class_weight_classifiers": NEGATIVE,
        "check_decision_proba_consistency": NEGATIVE,
        "check_classifiers_train": UNLEARNT,
    },
    "ResidualNet": {
        "check_class_weight_classifiers": NEGATIVE,
        "check_decision_proba_consistency": NEGATIVE,
        "check_classifiers_train": UNLEARNT,
    },
    "TotalIonCount": {"check_estimators_dtypes": "the check passes an empty spectrum"},
}

CHECKED = [
    RocLda(features=5),
    IsotopeNet(epochs=1),
    ResidualNet(epochs=1, batch_size=256),
    SquareRoot(),
    TopHatBaseline(3),
    SnipBaseline(3),
    TotalIonCount(),
]


@pytest.mark.filterwarnings("ignore:Skipping check:sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("estimator", CHECKED, ids=lambda e: type(e).__name__)
def test_scikit_learn_accepts(estimator):
    expected = EXPECTED_FAILURES.get(type(estimator).__name__, {})
    check = estimator_checks.check_estimator
    if "expected_failed_checks" not in inspect.signature(check).parameters:
        pytest.skip("this scikit-learn can't be told which of its checks don't apply")
    results = check(estimator, expected_failed_checks=expected, on_skip=None)
    failed = {r["check_name"] for r in results if r["status"] == "xfail"}
    assert failed == set(expected)  # nothing is excused that would pass
    assert sum(r["status"] == "passed" for r in results) > 40


@pytest.mark.parametrize("kind", [IsotopeNet, ResidualNet])
def test_it_learns_and_says_so(kind):
    train, test = small_spectra(), small_spectra(seed=1)
    model = kind(**QUICK | {"epochs": 10}).fit(train.X, train.y)
    assert model.score(test.X, test.y) > 0.9
    assert list(model.classes_) == ["adeno", "squamous"]
    probabilities = model.predict_proba(test.X)
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-6)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(test.X)).all()
    odds = np.log(probabilities[:, 1] / probabilities[:, 0])
    assert model.decision_function(test.X) == pytest.approx(odds, rel=1e-3, abs=1e-3)
    assert model.steps_ == 10 * (120 // 16) and len(model.history_) >= 10


def test_shuffled_labels_teach_nothing():
    train, test = small_spectra(), small_spectra(seed=1)
    shuffled = np.random.default_rng(0).permutation(train.y)
    assert IsotopeNet(**QUICK | {"epochs": 10}).fit(train.X, shuffled).score(test.X, test.y) < 0.8


def test_three_classes():
    train, test = small_spectra(180, classes=3), small_spectra(90, classes=3, seed=1)
    model = IsotopeNet(**QUICK | {"epochs": 10}).fit(train.X, train.y)
    assert model.decision_function(test.X).shape == (90, 3)
    assert model.score(test.X, test.y) > 0.8


@pytest.mark.parametrize(
    "model",
    [
        IsotopeNet(filters=BinFilters((1, 2), (4, 1)), local_kernel=0, **QUICK),
        IsotopeNet(local_kernel=3, **QUICK),
        IsotopeNet(grid=small_spectra().grid, filters=PhysicalFilters(0.5, 1.0), **QUICK),
    ],
    ids=["no local layer", "local kernel", "physical"],
)
def test_variants_learn(model):
    train, test = small_spectra(), small_spectra(seed=1)
    fitted = clone(model).set_params(epochs=10).fit(train.X, train.y)
    assert fitted.score(test.X, test.y) > 0.9


def test_seeds_repeat_and_leave_the_global_stream_alone(small):
    before = torch.get_rng_state()
    quick = QUICK | {"epochs": 2}
    first = IsotopeNet(**quick).fit(small.X, small.y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = clone(first).fit(small.X, small.y)
    assert np.array_equal(first.predict_proba(small.X), second.predict_proba(small.X))
    other = IsotopeNet(**quick | {"random_state": 1}).fit(small.X, small.y)
    assert not np.array_equal(first.predict_proba(small.X), other.predict_proba(small.X))


def test_predictions_depend_on_no_batch_and_no_unit(small):
    model = IsotopeNet(**QUICK | {"epochs": 2}).fit(small.X, small.y)
    whole = model.predict_proba(small.X)
    assert model.predict_proba(small.X[17:18]) == pytest.approx(whole[17:18], abs=1e-5)
    scaled = clone(model).fit(1000 * small.X, small.y)
    assert scaled.predict_proba(1000 * small.X) == pytest.approx(whole, abs=1e-3)


def test_early_stopping_leaves_the_best_weights(small):
    model = IsotopeNet(
        **QUICK | {"epochs": 400, "learning_rate": 0.02}, validation=0.25, patience=3
    )
    model.fit(small.X, small.y)
    losses = [r["validation/cross_entropy"] for r in model.history_ if "validation/accuracy" in r]
    per_epoch = 90 // 16
    assert model.steps_ < 400 * per_epoch
    assert len(losses) == model.steps_ // per_epoch
    assert int(np.argmin(losses)) == len(losses) - 1 - 3
    with pytest.raises(ValueError, match="patience counts validations"):
        IsotopeNet(patience=3).fit(small.X, small.y)


def test_groups_are_held_out_whole(small, monkeypatch):
    held = {}

    def spy(network, x, labels, *, validation, **options):
        held["x"] = validation[0]
        raise StopIteration

    monkeypatch.setattr("iresflow.spectra.estimators.network.fit", spy)
    with pytest.raises(StopIteration):
        IsotopeNet(validation=0.2).fit(small.X, small.y, groups=small.cores)
    rows = [np.flatnonzero((small.X == x.numpy()).all(1))[0] for x in held["x"]]
    of_cores = np.isin(small.cores, small.cores[rows])
    assert sorted(rows) == list(np.flatnonzero(of_cores))


def test_class_weights_move_the_decision():
    X = np.random.default_rng(0).poisson(3, (120, 15))  # nothing to learn
    y = np.where(np.arange(120) % 6 == 0, "rare", "usual")
    quick = QUICK | {"epochs": 4, "learning_rate": 0.05}
    said = [
        IsotopeNet(class_weight=weights, **quick).fit(X, y).predict_proba(X)[:, 0].mean()
        for weights in (None, "balanced", {"rare": 5, "usual": 1})
    ]
    assert said[0] + 0.1 < said[1] == pytest.approx(said[2], abs=1e-6)


def test_the_loss_is_the_weighted_mean():
    weights, logits, labels = (2.0, 0.5, 1.0), torch.randn(7, 3), torch.arange(7) % 3
    terms = WeightedCrossEntropy(weights)(lambda x, stream: x, Batch(logits, labels), None)
    single = -logits.log_softmax(1)[range(7), labels]
    assert float(terms.loss) == pytest.approx(
        float((torch.tensor(weights)[labels] * single).mean()), rel=1e-6
    )
    # Parts of a batch, weighted by their sizes, give the loss of the whole.
    parts = [
        WeightedCrossEntropy(weights)(lambda x, stream: x, Batch(logits[r], labels[r]), None)
        for r in (slice(2), slice(2, 7))
    ]
    mean = (2 * parts[0].loss + 5 * parts[1].loss) / 7
    assert float(mean) == pytest.approx(float(terms.loss), rel=1e-6)


@pytest.mark.parametrize("weights", [None, "balanced", {"a": 3.0}, {0: 2, 1: 1, 2: 0.5}])
def test_weights_of_classes_are_scikit_learns(weights):
    classes = np.arange(3) if isinstance(weights, dict) and 0 in weights else np.array([*"abc"])
    numbers = np.array([0, 0, 0, 1, 2, 2])
    found = weights_of_classes(weights, classes, numbers)
    assert found[numbers].mean() == pytest.approx(1)
    known = compute_class_weight(weights, classes=classes, y=classes[numbers])
    assert found / found[0] == pytest.approx(known / known[0])


def test_cross_validation_in_a_pipeline_leaks_nothing(small):
    model = make_pipeline(SnipBaseline(5), SquareRoot(), IsotopeNet(**QUICK | {"epochs": 1}))
    cut = GroupKFold(3)
    found = cross_val_predict(
        model, small.X, small.y, groups=small.cores, cv=cut, method="predict_proba"
    )
    # By hand, with spectra of the other folds alone: the same to the last digit.
    for train, test in cut.split(small.X, small.y, small.cores):
        assert not set(small.cores[train]) & set(small.cores[test])
        own = clone(model).fit(small.X[train], small.y[train])
        assert np.array_equal(own.predict_proba(small.X[test]), found[test])
    # The control: a model that has seen the spectra says something else of them.
    assert not np.allclose(clone(model).fit(small.X, small.y).predict_proba(small.X), found)


def test_receptive_fields_of_estimators(small):
    model = IsotopeNet(**QUICK | {"epochs": 1}).fit(small.X, small.y)
    assert receptive_field(model) == 49


def test_float64_is_as_good(small):
    torch.set_default_dtype(torch.float64)
    model = IsotopeNet(**QUICK).fit(small.X, small.y)
    assert next(model.network_.parameters()).dtype == torch.float64
    assert model.score(small.X, small.y) > 0.9
