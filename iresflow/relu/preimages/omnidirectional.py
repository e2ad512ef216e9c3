r"""Omnidirectional matrices: no half-space is free of rows (thesis, definition 3.1).

:math:`A \in \mathbb{R}^{m \times n}` is omnidirectional if :math:`A x \le 0` only holds for x = 0:
0 lies in the interior of the convex hull of its rows, and not on the boundary. By Stiemke's
theorem this is: rank A = n, and :math:`A^\top w = 0` for some :math:`w > 0`.

One linear program decides. For rows of norm one,

.. math:: \max_{s, t} t \quad\text{subject to}\quad A^\top (s + t 1) = 0,\ 0 \le s, t \le 1,

maximises the smallest weight t of :math:`w = s + t`. If t > 0, w is the certificate. If t = 0,
the multipliers x of the equality are the other one: :math:`A x \le 0`, and one row is negative.
Weights of clear cases are found before by a few projections, and proven in the same way.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from iresflow.relu.networks.affine import Matrix, as_array
from iresflow.relu.programs import Program, feasible, solve
from iresflow.relu.ranks import Decomposition, decompose

__all__ = ["Omnidirectionality", "is_omnidirectional"]

ROUNDING = 1e-12
"""Up to this, products of unit vectors are zero."""

PROJECTIONS = 300
"""Projections that are tried before the program."""

LEAST = 1e-3
"""Share of the largest entry that the smallest one must have to end them."""

RELAXATION = 1.9
"""Length of a step, in distances from the set; below 2."""

NEARLY = 1e-6
"""Up to this, a product in a direction from the solver is made exactly zero, if it can be."""


@final
@dataclass(frozen=True, eq=False)
class Omnidirectionality:
    """Whether a matrix ``(m, n)`` is omnidirectional, with a certificate that was checked.

    Attributes:
        holds: True or False; None if this is uncertain: rows so near to the boundary of a
            half-space, or to dependence, that rounding decides.
        weights: If it holds: w > 0, ``(m,)``, with the transposed product of A and w zero.
        direction: If it does not hold: x of norm 1, ``(n,)``, with A x <= 0 (zero up to
            `ROUNDING` times the norm of a row).
        margin: The smallest of these weights, for rows scaled to norm 1, the largest of which is
            about 1; 0 where it does not hold.
    """

    holds: bool | None
    weights: Tensor | None = None
    direction: Tensor | None = None
    margin: float = 0.0

    def __bool__(self) -> bool:
        return self.holds is True


def is_omnidirectional(matrix: Matrix | Tensor) -> Omnidirectionality:
    """Decides whether a matrix is omnidirectional.

    Arguments:
        matrix: A, shape ``(m, n)``. With n = 0 the answer is yes: there is no direction.

    Raises:
        ValueError: not a matrix, or entries that are not finite.
        LinearProgramError: the solver gave up.
    """
    a = as_array(matrix, "matrix", 2)
    norms = np.linalg.norm(a, axis=1)
    rows = norms > 0  # a row of zeros is no direction
    count = a.shape[1]
    if count == 0:
        return Omnidirectionality(True, torch.ones(len(a), dtype=torch.float64), margin=1.0)
    unit = a[rows] / norms[rows, None]
    parts = decompose(unit)
    if parts.rank < count:
        return _dependent(unit, parts)
    if len(unit) <= count:  # as many independent rows as dimensions (corollary 6)
        return _refuted(unit, np.linalg.solve(unit, -np.ones(count)))
    proof = _Proof(unit, parts, linalg.qr(unit, mode="economic")[0])
    w, x = proof.by_projections()
    if w is None and x is None:
        proposed, x = _largest_weight(unit)
        w = proof.checked(proposed)
    if w is None:
        assert x is not None
        return _refuted(unit, x)
    weights = np.ones(len(a))
    weights[rows] = w / norms[rows]
    return Omnidirectionality(True, torch.from_numpy(weights), margin=float(w.min()))


@final
@dataclass(frozen=True, eq=False)
class _Proof:
    """What weights are proven with: rows of norm 1 and full rank, and a basis of their range."""

    unit: np.ndarray
    parts: Decomposition
    range: np.ndarray

    def checked(self, w: np.ndarray) -> np.ndarray | None:
        """Weights, moved into the null space of the transpose, if they are a proof, else None.

        With r what rounding leaves of the transposed product, no x of norm 1 with A x <= 0 exists
        if min(w) smin(A) > |r|: else -w.A x >= min(w) |A x| > |r| >= -r.x.
        """
        w = w - self.range @ (self.range.T @ w)
        residual = float(np.linalg.norm(self.unit.T @ w)) + ROUNDING
        smallest = float(self.parts.spectrum.values[-1])
        return w if w.min() * smallest > residual else None

    def by_projections(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weights w that prove it, or x with A x < 0; neither where they are not found cheaply.

        Over-relaxed projections, in turn onto w >= 1 and onto the null space of the transpose,
        and likewise of v = -A x onto v >= 1 and onto the range. By Stiemke's theorem only one of
        the two has a goal. All of them cost a tenth of one program of hundreds of unknowns.
        """
        w = v = np.ones(len(self.unit))
        for _ in range(PROJECTIONS):
            w = w - self.range @ (self.range.T @ w)
            if w.min() > LEAST * w.max():
                return self.checked(w / w.max()), None
            v = self.range @ (self.range.T @ v)
            if v.min() > LEAST * v.max():
                return None, -self.parts.solve(v)
            w = w + RELAXATION * np.maximum(1 - w, 0)
            v = v + RELAXATION * np.maximum(1 - v, 0)
        return None, None


def _dependent(unit: np.ndarray, parts: Decomposition) -> Omnidirectionality:
    """The rows don't span the space: a direction orthogonal to all of them."""
    if not parts.certain:
        return Omnidirectionality(None)
    return Omnidirectionality(False, direction=torch.from_numpy(parts.right[-1].copy()))


def _largest_weight(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The program above: w and the multipliers x."""
    transposed = np.column_stack([unit.T, unit.sum(0)])
    cost = np.append(np.zeros(len(unit)), -1.0)
    zeros = np.zeros(len(transposed))
    solved = feasible(solve(Program(cost, transposed, zeros, zeros, 0.0, 1.0)))  # s = t = 0 is
    assert solved.x is not None and solved.multipliers is not None  # and t is at most 1
    return solved.x[:-1] + solved.x[-1], solved.multipliers


def _refuted(unit: np.ndarray, x: np.ndarray) -> Omnidirectionality:
    """Not omnidirectional, if x or -x, freed of the solver's tolerance, is a direction."""
    length = float(np.linalg.norm(x))
    if length == 0:
        return Omnidirectionality(None)
    for candidate in (x / length, -x / length):
        products = unit @ candidate
        if products.max() > NEARLY:
            continue
        touching = np.abs(products) <= NEARLY
        if products.max() > ROUNDING and touching.any():
            basis = decompose(unit[touching]).null_basis
            candidate = basis @ (basis.T @ candidate)
            left = float(np.linalg.norm(candidate))
            if left < 0.5:
                continue
            candidate = candidate / left
            products = unit @ candidate
        if products.max() <= ROUNDING:
            return Omnidirectionality(False, direction=torch.from_numpy(candidate))
    return Omnidirectionality(None)
