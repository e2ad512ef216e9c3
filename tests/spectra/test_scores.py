"""Scores against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from iresflow.spectra import balanced_accuracy, core_balanced_accuracy, majority_vote


def test_balanced_accuracy_is_scikit_learns():
    random = np.random.default_rng(0)
    labels, predicted = random.integers(3, size=(2, 50))
    assert balanced_accuracy(labels, predicted) == balanced_accuracy_score(labels, predicted)
    # The thesis' formula for two classes.
    labels, predicted = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 1])
    assert balanced_accuracy(labels, predicted) == pytest.approx((2 / 3 + 0 / 1) / 2)


def test_a_class_that_a_small_fold_lacks_is_no_class_of_it():
    assert balanced_accuracy(["a", "a", "b"], ["a", "c", "b"]) == pytest.approx(0.75)


def test_the_majority_decides_on_a_core():
    predicted = np.array(["a", "b", "b", "a", "a", "b"])
    cores = np.array([7, 7, 7, 3, 3, 5])
    known, voted = majority_vote(predicted, cores)
    assert known.tolist() == [3, 5, 7] and voted.tolist() == ["a", "b", "b"]
    labels = np.array(["b", "b", "b", "a", "a", "a"])
    assert core_balanced_accuracy(labels, predicted, cores) == pytest.approx((1 / 2 + 1) / 2)


def test_of_equal_votes_the_first_class_counts():
    _, voted = majority_vote(np.array(["b", "a"]), np.array([0, 0]))
    assert voted.tolist() == ["a"]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"predicted has the shape \(1,\); \(2,\) is needed"):
        balanced_accuracy([0, 1], [0])
    with pytest.raises(ValueError, match=r"cores has the shape \(1,\)"):
        majority_vote(np.array([1, 0]), np.array([1]))
    with pytest.raises(ValueError, match="cores holds NaN"):
        majority_vote([1, 0], [np.nan, np.nan])
    with pytest.raises(ValueError, match="there is no spectrum"):
        majority_vote(np.array([]), np.array([]))
    with pytest.raises(ValueError, match=r"cores has the shape \(2,\); \(1,\) is needed"):
        core_balanced_accuracy([0], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="core 3 has spectra of 2 classes"):
        core_balanced_accuracy([0, 1], [0, 1], [3, 3])
