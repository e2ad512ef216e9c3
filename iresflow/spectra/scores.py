"""How good predictions are, on spots and, by majority vote, on tissue cores (thesis, 7.4)."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import recall_score

from iresflow.spectra.checks import require_members

__all__ = ["balanced_accuracy", "core_balanced_accuracy", "majority_vote"]


def balanced_accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """The mean over classes of the share of spectra of the class that are recognised.

    Arguments:
        labels: ``(spectra,)``.
        predicted: ``(spectra,)``.

    Raises:
        ValueError: different lengths, no spectra, or entries that are no class.
    """
    labels, predicted = require_members(labels=labels, predicted=predicted)
    if not len(labels):
        raise ValueError("there is no spectrum")
    # Not scikit-learn's balanced_accuracy_score, which warns where a small fold lacks a class.
    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro"))


def majority_vote(predicted: ArrayLike, cores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The class that most spectra of each core were given; of equal ones the first in order.

    Arguments:
        predicted: Of the spectra ``(spectra,)``.
        cores: Which core each spectrum is of ``(spectra,)``.

    Returns:
        The cores in order ``(cores,)``, and the class of each ``(cores,)``.

    Raises:
        ValueError: different lengths, or no spectra.
    """
    predicted, cores = require_members(predicted=predicted, cores=cores)
    if not len(cores):
        raise ValueError("there is no spectrum")
    classes, numbers = np.unique(predicted, return_inverse=True)
    known, places = np.unique(cores, return_inverse=True)
    votes = np.zeros((len(known), len(classes)), dtype=int)
    np.add.at(votes, (places, numbers), 1)
    return known, classes[votes.argmax(1)]


def core_balanced_accuracy(labels: ArrayLike, predicted: ArrayLike, cores: ArrayLike) -> float:
    """The balanced accuracy of cores, each of the class that most of its spectra were given.

    Arguments:
        labels: Of the spectra ``(spectra,)``; those of a core are one.
        predicted: ``(spectra,)``.
        cores: Which core each spectrum is of ``(spectra,)``.

    Raises:
        ValueError: different lengths, no spectra, or a core with labels of two classes.
    """
    labels, cores = require_members(labels=labels, cores=cores)
    known, voted = majority_vote(predicted, cores)
    truth = []
    for core in known:
        found = np.unique(labels[cores == core])
        if len(found) > 1:
            raise ValueError(f"core {core} has spectra of {len(found)} classes: {found[:5]}")
        truth.append(found[0])
    return balanced_accuracy(np.array(truth), voted)
