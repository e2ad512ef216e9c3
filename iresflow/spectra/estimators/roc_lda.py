"""Single masses that tell classes apart, and a linear discriminant: the thesis' baseline (7.4)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils.validation import check_is_fitted

from iresflow.spectra.checks import Floats, require_same_grid, require_spectra
from iresflow.spectra.collection import grid_of
from iresflow.spectra.estimators.classifier import (
    ClassifierOfSpectra,
    labelled_spectra,
    weights_of_classes,
)
from iresflow.spectra.parameters import require_count, require_kind

__all__ = ["RocLda", "fit_each", "roc_areas"]

COLUMNS = 1000
"""Bins that are ranked at a time."""


def roc_areas(X: ArrayLike, y: ArrayLike) -> Floats:
    """The area under the ROC curve of each bin, for each class against the rest.

    The Mann-Whitney statistic, divided by the number of pairs: the probability that a spectrum of
    the class is higher there than one of another class, equal ones counting one half.

    Arguments:
        X: ``(spectra, bins)``.
        y: Labels ``(spectra,)``.

    Returns:
        ``(classes, bins)``, the classes in order.

    Raises:
        ValueError: as `labelled_spectra`.
    """
    spectra, numbers, classes = labelled_spectra(X, y)
    counts = np.bincount(numbers)[:, None]
    own = np.eye(len(classes))[:, numbers]
    sums = [
        own @ rankdata(spectra[:, first : first + COLUMNS], axis=0)
        for first in range(0, spectra.shape[1], COLUMNS)
    ]
    statistics = np.concatenate(sums, axis=1) - counts * (counts + 1) / 2
    areas: Floats = statistics / (counts * (len(spectra) - counts))
    return areas


@final
class RocLda(ClassifierOfSpectra):
    """The K bins that tell a class from the rest best, and linear discriminant analysis.

    Bins are ranked by how far their area under the ROC curve is from one half, of the class for
    which that is farthest (Boskamp et al., 2017, as the thesis tells it; one against the rest
    where there are more than two classes).

    Arguments:
        features: K, how many bins; all, if there are fewer.
        grid: Masses of the bins ``(bins,)`` in daltons, for arrays, which don't have them.
        class_weight: A weight for each class, ``"balanced"``, or None, as in scikit-learn: the
            prior probabilities are in proportion to the weights times the classes' sizes.

    Attributes:
        classes_: The classes in order.
        n_features_in_: Bins of the spectra.
        grid_: The grid of fitting, as floats, or None.
        selected_: The K bins, the best first.
        coefficients_, intercepts_: Of the discriminants on the K bins, ``(classes, K)`` and
            ``(classes,)``, or of one discriminant for two classes.
    """

    def __init__(
        self,
        *,
        features: int = 20,
        grid: ArrayLike | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        self.features = features
        self.grid = grid
        self.class_weight = class_weight

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Ranks the bins and fits the discriminants.

        Arguments:
            X: ``(spectra, bins)``, 0 or more: an array, or `Spectra`, whose grid is remembered.
            y: Labels ``(spectra,)``.

        Raises:
            ValueError: data, a grid or parameters that don't fit; see `require_spectra`.
        """
        return self._fit(X, y, _ranking(X, y))

    def _fit(self, X: ArrayLike, y: ArrayLike, ranking: np.ndarray) -> Self:
        spectra, numbers, classes = labelled_spectra(X, y)
        require_count(features=self.features)
        self.grid_ = grid_of(X, self.grid, spectra.shape[1])
        weights = weights_of_classes(self.class_weight, classes, numbers)
        shares = weights * np.bincount(numbers)
        chosen = spectra[:, ranking[: self.features]]
        if all(np.ptp(chosen[numbers == k], axis=0).max() == 0 for k in range(len(classes))):
            raise ValueError(
                f"within each class, the {chosen.shape[1]} best bins are constant: a discriminant "
                "has no spread to measure distances by; take more features, or real spectra"
            )
        model = LinearDiscriminantAnalysis(priors=shares / shares.sum())
        model.fit(chosen, numbers)
        self.classes_, self.n_features_in_ = classes, spectra.shape[1]
        self.selected_ = ranking[: self.features]
        self.coefficients_, self.intercepts_ = model.coef_, model.intercept_
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Discriminants ``(spectra, classes)``; of two classes ``(spectra,)``, for the second.

        Raises:
            ValueError: spectra of another number of bins or on another grid than at fitting, or as
                `require_spectra`.
        """
        check_is_fitted(self)
        spectra = require_spectra(X, self.n_features_in_, by=self)
        require_same_grid(grid_of(X, self.grid), self.grid_)
        found = spectra[:, self.selected_] @ self.coefficients_.T + self.intercepts_
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities ``(spectra, classes)``, in the order of ``classes_``.

        Raises:
            ValueError: as `decision_function`.
        """
        found = self.decision_function(X)
        logits = np.stack([np.zeros_like(found), found], 1) if found.ndim == 1 else found
        grown = np.exp(logits - logits.max(1, keepdims=True))
        return grown / grown.sum(1, keepdims=True)


def fit_each(
    model: RocLda, X: ArrayLike, y: ArrayLike, features: Sequence[int]
) -> dict[int, RocLda]:
    """Models of several numbers of bins, for which the bins are ranked once.

    Arguments:
        model: What they are like, but for the number.
        X: As of `RocLda.fit`.
        y: As of `RocLda.fit`.
        features: The numbers K, such as 5 to 100 in the thesis.

    Raises:
        ValueError: as `RocLda.fit`.
    """
    require_kind(RocLda, model=model)
    require_kind(Iterable, features=features)
    ranking = _ranking(X, y)
    return {
        count: RocLda(features=count, grid=model.grid, class_weight=model.class_weight)._fit(
            X, y, ranking
        )
        for count in features
    }


def _ranking(X: ArrayLike, y: ArrayLike) -> np.ndarray:
    """The bins, the best first; of equal ones the lighter first."""
    return np.argsort(-np.abs(roc_areas(X, y) - 0.5).max(0), kind="stable")
