"""What is done to spectra before they are classified, as scikit-learn transformers.

None of them learns from the spectra that it is fitted to, so in a pipeline nothing leaks from one
fold to another. Fitting checks the spectra, and remembers their number of bins and, of `Spectra`,
their grid. What comes out is of the kind of what went in: arrays, or `Spectra` with their grid.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Self, final, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import grey_opening
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from iresflow.spectra.checks import (
    Floats,
    require_grid,
    require_real,
    require_same_grid,
    require_spectra,
)
from iresflow.spectra.collection import Spectra, grid_of
from iresflow.spectra.grids import bin_edges, resample
from iresflow.spectra.parameters import require_count, require_positive

__all__ = [
    "Binning",
    "Resampling",
    "SnipBaseline",
    "SquareRoot",
    "TopHatBaseline",
    "TotalIonCount",
]


ROUNDING = 1e-12
"""By how much a quotient of masses may miss a whole number."""


class Preprocessing(TransformerMixin, BaseEstimator, ABC):
    """A transformer of spectra ``(spectra, bins)``, each by itself.

    Attributes:
        n_features_in_: Bins of the spectra.
        grid_in_: Masses of the bins ``(bins,)`` in daltons, or None where they are not known.
        grid_: Masses of the bins that come out ``(bins',)``, likewise.
    """

    grid: ArrayLike | None = None
    n_features_in_: int
    grid_in_: Floats | None
    grid_: Floats | None

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Checks spectra and parameters.

        Arguments:
            X: ``(spectra, bins)``, 0 or more: an array, or `Spectra`, whose grid is remembered.
            y: Nothing is learnt from labels.

        Raises:
            ValueError: as `require_spectra`, or a parameter is out of range.
        """
        bins = require_spectra(X).shape[1]
        grid = grid_of(X, self.grid, bins)
        self.grid_ = self._prepare(bins, grid)
        self.n_features_in_, self.grid_in_ = bins, grid
        return self

    # Spectra are arrays, too, to those who take arrays: the first that fits is meant.
    @overload
    def transform(self, X: Spectra) -> Spectra: ...

    @overload
    def transform(self, X: ArrayLike) -> Floats: ...

    def transform(self, X: ArrayLike) -> Floats | Spectra:
        """The transformed spectra ``(spectra, bins')``; of `Spectra`, with all that was known.

        Raises:
            ValueError: as `require_spectra`, or another number of bins or another grid than at
                fitting.
        """
        check_is_fitted(self)
        spectra = require_spectra(X, self.n_features_in_, by=self)
        require_same_grid(grid_of(X, self.grid), self.grid_in_)
        found = self._apply(spectra)
        if not isinstance(X, Spectra):
            return found
        return replace(X, X=found, grid=_known(self.grid_))

    def _prepare(self, bins: int, grid: Floats | None) -> Floats | None:
        """Checks parameters against bins and grid, and gives the grid of what comes out."""
        return grid

    @abstractmethod
    def _apply(self, spectra: Floats) -> Floats:
        """As `transform`, of spectra that are checked."""

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 (a class of newer versions)
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


@final
class TopHatBaseline(Preprocessing):
    """Subtracts the baseline that a morphological opening finds: what peaks stand on.

    Arguments:
        half_width: Bins to each side of the flat structuring element, wider than half a peak.
    """

    def __init__(self, half_width: int = 100) -> None:
        self.half_width = half_width

    def _prepare(self, bins: int, grid: Floats | None) -> Floats | None:
        require_count(half_width=self.half_width)
        return grid

    def _apply(self, spectra: Floats) -> Floats:
        opened: Floats = grey_opening(spectra, size=(1, 2 * int(self.half_width) + 1))
        # The window mirrors the ends, where an opening can exceed what it opens.
        return np.maximum(spectra - opened, 0.0)


@final
class SnipBaseline(Preprocessing):
    """Subtracts the baseline of the SNIP algorithm (Ryan et al., 1988; Morháč, 2009).

    Each bin is replaced by the mean of those p to its left and right where that is lower, for p
    from ``iterations`` down to 1.

    Arguments:
        iterations: Bins, more than half the width of a peak.
    """

    def __init__(self, iterations: int = 100) -> None:
        self.iterations = iterations

    def _prepare(self, bins: int, grid: Floats | None) -> Floats | None:
        require_count(iterations=self.iterations)
        return grid

    def _apply(self, spectra: Floats) -> Floats:
        baseline, bins = spectra.copy(), spectra.shape[1]
        for p in range(min(int(self.iterations), (bins - 1) // 2), 0, -1):
            means = (baseline[:, : -2 * p] + baseline[:, 2 * p :]) / 2
            baseline[:, p:-p] = np.minimum(baseline[:, p:-p], means)
        return spectra - baseline


@final
class SquareRoot(Preprocessing):
    """The square root of intensities, which makes the variance of counts the same everywhere."""

    def _apply(self, spectra: Floats) -> Floats:
        return np.sqrt(spectra)


@final
class TotalIonCount(Preprocessing):
    """Divides each spectrum by its sum, the total ion count.

    Raises:
        ValueError: in `transform`, for an empty spectrum, one whose sum is 0.
    """

    def _apply(self, spectra: Floats) -> Floats:
        sums = spectra.sum(1, keepdims=True)
        if (sums == 0).any():
            raise ValueError(
                f"spectrum {int(np.argmax(sums[:, 0] == 0))} is empty: all its intensities are 0, "
                "so it has no total ion count to divide by"
            )
        return spectra / sums


@final
class Resampling(Preprocessing):
    """Brings spectra to another grid (`iresflow.spectra.grids.resample`).

    Each new bin gets the mean of the linear interpolant of a spectrum over the bin.

    Arguments:
        grid: Masses of the bins ``(bins,)`` in daltons, for arrays, which don't have them.
        masses: Those of the new ones ``(bins',)``, within the grid; None for an equidistant grid
            of as many from the first to the last one.

    Raises:
        ValueError: in `fit`, also where the new masses leave the grid, or don't meet it at all.
    """

    def __init__(self, grid: ArrayLike | None = None, masses: ArrayLike | None = None) -> None:
        self.grid = grid
        self.masses = masses

    def _prepare(self, bins: int, grid: Floats | None) -> Floats | None:
        old = _known(grid)
        named = None if self.masses is None else require_real(masses=self.masses)
        found = require_grid(np.linspace(old[0], old[-1], bins) if named is None else named)
        resample(np.zeros(bins), old, found)  # says what does not fit
        return found

    def _apply(self, spectra: Floats) -> Floats:
        return resample(spectra, _known(self.grid_in_), _known(self.grid_))


@final
class Binning(Preprocessing):
    """Sums intensities in wider bins of equal width; the sum of a spectrum stays what it is.

    A bin that lies in several new ones is divided in proportion to its share of each.

    Arguments:
        grid: Masses of the bins ``(bins,)`` in daltons, for arrays, which don't have them.
        width: Of the new bins, in daltons, not below that of the widest old one.

    Raises:
        ValueError: in `fit`.
    """

    def __init__(self, grid: ArrayLike | None = None, width: float = 1.0) -> None:
        self.grid = grid
        self.width = width

    def _prepare(self, bins: int, grid: Floats | None) -> Floats | None:
        require_positive(width=self.width)
        edges = bin_edges(_known(grid))
        widest = float(np.diff(edges).max())
        if self.width < widest * (1 - ROUNDING):
            raise ValueError(
                f"bins are up to {widest:g} Da wide, and the new ones would be {self.width:g}: "
                "take wider ones, or Resampling"
            )
        count = int(np.ceil((edges[-1] - edges[0]) / self.width * (1 - ROUNDING)))
        self._edges, self._ends = edges, edges[0] + self.width * np.arange(count + 1)
        return (self._ends[1:] + self._ends[:-1]) / 2

    def _apply(self, spectra: Floats) -> Floats:
        upto = np.concatenate([np.zeros((len(spectra), 1)), spectra.cumsum(1)], axis=1)
        sums = [np.interp(self._ends, self._edges, row) for row in upto]
        return np.maximum(np.diff(np.stack(sums), axis=1), 0.0)  # a sum of sums rounds


def _known(grid: Floats | None) -> Floats:
    """The grid, where one is needed."""
    if grid is None:
        raise ValueError("arrays have no masses: pass them by grid=..., or Spectra, which do")
    return grid
