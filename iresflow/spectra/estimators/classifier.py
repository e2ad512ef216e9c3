"""What all classifiers of spectra have in common: labels, weights of classes, the most likely."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from iresflow.spectra.checks import Floats, require_spectra, require_unmasked
from iresflow.spectra.estimators.storage import Stored
from iresflow.spectra.parameters import require_positive

__all__ = ["ClassifierOfSpectra", "labelled_spectra", "weights_of_classes"]


def labelled_spectra(X: ArrayLike, y: ArrayLike) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Spectra ``(N, bins)``, class numbers ``(N,)``, and the classes in order.

    Raises:
        ValueError: spectra or labels that aren't such or are masked, different lengths, or one
            class alone.
    """
    spectra = require_spectra(X)
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    require_unmasked(y=y)
    labels = column_or_1d(y, warn=True)
    check_classification_targets(labels)
    if len(labels) != len(spectra):
        raise ValueError(f"{len(spectra)} spectra and {len(labels)} labels")
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"all {len(labels)} spectra are of one class, {classes[0]}: a classifier learns from "
            "two classes at least"
        )
    return spectra, numbers, classes


def weights_of_classes(
    class_weight: Mapping[Any, float] | str | None, classes: np.ndarray, numbers: np.ndarray
) -> Floats:
    """A weight for each class ``(classes,)``, whose mean over the samples is 1.

    Arguments:
        class_weight: As scikit-learn has it: a weight for each class, 1 for those that are left
            out; ``"balanced"`` for the same sum of weights in all classes; None for none.
        classes: In order.
        numbers: The class number of each sample ``(samples,)``.

    Raises:
        ValueError: it is something else, names a class that there is not, or has a weight that is
            not above 0.
    """
    weights: Floats = np.ones(len(classes))
    if isinstance(class_weight, Mapping):
        for label, weight in class_weight.items():
            if label not in classes:
                raise ValueError(f"class_weight names {label!r}, and classes are {classes}")
            require_positive(class_weight=weight)
            weights[classes == label] = weight
    elif class_weight == "balanced":
        weights = 1 / np.maximum(np.bincount(numbers, minlength=len(classes)), 1)
    elif class_weight is not None:
        raise ValueError(
            f"class_weight is a weight for each class, 'balanced' or None, got {class_weight!r}"
        )
    return weights / weights[numbers].mean()


class ClassifierOfSpectra(Stored, ClassifierMixin, BaseEstimator, ABC):
    """A scikit-learn classifier of arrays of spectra ``(spectra, bins)``, none below 0."""

    classes_: np.ndarray
    n_features_in_: int

    @abstractmethod
    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities ``(spectra, classes)``, in the order of ``classes_``."""

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most likely class of each spectrum ``(spectra,)``.

        Raises:
            ValueError: as `predict_proba`.
        """
        best = self.predict_proba(X).argmax(1)  # first: it says so if nothing is fitted
        found: np.ndarray = self.classes_[best]
        return found

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 (a class of newer versions)
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags
