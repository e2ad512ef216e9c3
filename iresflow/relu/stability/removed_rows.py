r"""What removing rows by ReLU can do to singular values (thesis, lemmas 3.5 and 3.6; A5).

A is the matrix before an activation, ``(m, n)``, I the units that ReLU sets to zero, and
:math:`D_I A` the rest: M = m - \|I\| rows.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from iresflow.relu.ranks import decompose
from iresflow.relu.stability.local_map import Spectrum, singular_values

__all__ = ["CorrelationBound", "correlation_bound", "correlation_counts", "removal_bounds"]

WITHIN = 1e-8
"""Part of a unit vector outside of a space, up to which it lies within."""


def removal_bounds(before: Spectrum, removed: int) -> tuple[float, float]:
    r"""Upper bounds of the smallest non-zero and of the largest singular value after ReLU.

    Lemma 3.5: with N non-zero singular values before, the smallest one after is at most the one
    of number N - \|I\|, and the largest one at most the largest.

    (The printed proof takes vectors that are not orthogonal to a null space to lie within it. The
    statement holds all the same: by interlacing, singular value k of :math:`D_I A` is at most
    number k of A, and at least N - \|I\| of them are not zero.)

    Arguments:
        before: Of A.
        removed: \|I\|.

    Returns:
        Both bounds; the first one is infinite where \|I\| >= N, as nothing need be left then.
    """
    if removed < 0:
        raise ValueError(f"removed={removed}; allowed is 0 or more")
    place = before.count - removed
    smallest = float(before.values[place - 1]) if place >= 1 else float("inf")
    return smallest, float(before.values.max(initial=0.0))


@final
@dataclass(frozen=True)
class CorrelationBound:
    """The bound of lemma 3.6, for the removed row that gives the smallest.

    Attributes:
        c: Upper bound of the smallest non-zero singular value after ReLU; infinite where no
            removed row lies in the span of the others.
        direct: The norm of D_I A v for the unit vector v of that row, which c is a bound of: a
            tighter one.
        row: The number of the row; None where there is none.
    """

    c: float
    direct: float
    row: int | None


def correlation_bound(matrix: np.ndarray, removed: np.ndarray) -> CorrelationBound:
    r"""The smallest c for which some removed row k fulfils condition 3.5 with all rows j left.

    :math:`c = \sqrt{M} \max_{j \notin I} |\langle a_j, a_k \rangle| / \|a_k\|`, minimised over the
    k in I with :math:`a_k` in the span of the rows left, as the lemma demands.

    Arguments:
        matrix: A, ``(m, n)``.
        removed: Which rows are in I, bools ``(m,)``.
    """
    correlations, candidates = _correlations(matrix, removed)
    left = matrix[~removed]
    if not left.size or not candidates.size:
        return CorrelationBound(float("inf"), float("inf"), None)
    parts = decompose(left)
    units = matrix[candidates] / np.linalg.norm(matrix[candidates], axis=1, keepdims=True)
    outside = np.linalg.norm(units @ parts.null_basis, axis=1)
    c = np.sqrt(len(left)) * correlations.max(axis=0)
    c[outside > WITHIN] = np.inf
    best = int(c.argmin())
    if not np.isfinite(c[best]):
        return CorrelationBound(float("inf"), float("inf"), None)
    direct = float(np.linalg.norm(correlations[:, best]))
    return CorrelationBound(float(c[best]), direct, int(candidates[best]))


def correlation_counts(matrix: np.ndarray, removed: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """For each c, how many rows left fulfil condition 3.5 with the same removed row, at most.

    The counting experiment (ICLR version, appendix A5); like there, whether the removed row lies
    in the span of the others is not asked.

    Arguments:
        matrix: A, ``(m, n)``.
        removed: Which rows are in I, bools ``(m,)``.
        grid: Values of c, ``(C,)``.

    Returns:
        ``(C,)`` integers.
    """
    correlations, candidates = _correlations(matrix, removed)
    if not candidates.size:
        return np.zeros(len(grid), dtype=int)
    needed = np.sort(np.sqrt(max(1, len(correlations))) * correlations, axis=0)
    counts = [np.searchsorted(column, grid, side="right") for column in needed.T]
    return np.max(counts, axis=0)


def spectrum_behind(matrix: np.ndarray, removed: np.ndarray) -> Spectrum:
    """The singular values of D_I A."""
    return singular_values(np.where(removed[:, None], 0.0, matrix))


def _correlations(matrix: np.ndarray, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|<a_j, a_k>| / |a_k| for the rows j left and the removed rows k that are not zero."""
    if matrix.ndim != 2 or removed.shape != matrix.shape[:1] or removed.dtype != bool:
        raise ValueError(
            f"matrix has shape {matrix.shape} and removed {removed.dtype} {removed.shape}; "
            "allowed are (m, n) and bools (m,)"
        )
    norms = np.linalg.norm(matrix, axis=1)
    candidates = np.flatnonzero(removed & (norms > 0))
    units = matrix[candidates] / norms[candidates, None]
    return np.abs(matrix[~removed] @ units.T), candidates
