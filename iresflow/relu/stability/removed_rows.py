r"""What removing rows by ReLU can do to singular values (thesis, lemmas 3.5 and 3.6; A5).

A is the matrix before an activation, ``(m, n)``, I the units that ReLU sets to zero, and
:math:`D_I A` the rest: M = m - \|I\| rows.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.relu.ranks import Spectrum, decompose

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
    return smallest, float(before.values[:1].sum())


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


def correlation_bound(matrix: Tensor, removed: Tensor) -> CorrelationBound:
    r"""The smallest c for which some removed row k fulfils condition 3.5 with all rows j left.

    :math:`c = \sqrt{M} \max_{j \notin I} |\langle a_j, a_k \rangle| / \|a_k\|`, minimised over the
    k in I with :math:`a_k` in the span of the rows left, as the lemma demands.

    Arguments:
        matrix: A, ``(m, n)``.
        removed: Which rows are in I, bools ``(m,)``.
    """
    correlations, candidates = _correlations(matrix, removed)
    left = matrix[~removed]
    if 0 in left.shape or not len(candidates):
        return CorrelationBound(float("inf"), float("inf"), None)
    null_basis = torch.from_numpy(decompose(left.numpy()).null_basis)
    units = matrix[candidates] / matrix[candidates].norm(dim=1, keepdim=True)
    outside = (units @ null_basis).norm(dim=1)
    c = len(left) ** 0.5 * correlations.amax(0)
    c[outside > WITHIN] = torch.inf
    best = int(c.argmin())
    if not bool(torch.isfinite(c[best])):
        return CorrelationBound(float("inf"), float("inf"), None)
    direct = float(correlations[:, best].norm())
    return CorrelationBound(float(c[best]), direct, int(candidates[best]))


def correlation_counts(matrix: Tensor, removed: Tensor, grid: Tensor) -> Tensor:
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
    if not len(candidates):
        return torch.zeros(len(grid), dtype=torch.int64)
    needed = (max(1, len(correlations)) ** 0.5 * correlations).sort(0).values.mT.contiguous()
    counts = torch.searchsorted(needed, grid.expand(len(needed), -1).contiguous(), right=True)
    return counts.amax(0)


def _correlations(matrix: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """|<a_j, a_k>| / |a_k| for the rows j left and the removed rows k that are not zero."""
    if matrix.dim() != 2 or removed.shape != matrix.shape[:1] or removed.dtype != torch.bool:
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)} and removed {removed.dtype} "
            f"{tuple(removed.shape)}; allowed are (m, n) and bools (m,)"
        )
    norms = matrix.norm(dim=1)
    candidates = (removed & (norms > 0)).nonzero()[:, 0]
    units = matrix[candidates] / norms[candidates, None]
    return (matrix[~removed] @ units.mT).abs(), candidates
