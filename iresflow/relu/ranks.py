"""The numerical rank of a matrix, decided with a stated tolerance, and where it is not, said so.

A singular value counts as zero below `ZERO` and as positive above `CLEAR`, both relative to the
largest one. Between them the rank is uncertain: another rounding of the weights would change it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from scipy import linalg

__all__ = ["CLEAR", "ZERO", "Decomposition", "clearly_injective", "decompose"]

ZERO = 1e-12
"""Relative singular value up to which one is zero: about the rounding of a decomposition."""

CLEAR = 1e-8
"""Relative singular value from which on one is positive."""


@final
@dataclass(frozen=True, eq=False)
class Decomposition:
    """The singular value decomposition of a matrix ``(m, n)``.

    Attributes:
        left: ``(m, min(m, n))``.
        values: Singular values, ``(min(m, n),)``, falling.
        right: ``(n, n)``, rows are right singular vectors.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @cached_property
    def rank(self) -> int:
        """Number of singular values above `CLEAR`."""
        return int((self.values > CLEAR * self._scale).sum())

    @property
    def certain(self) -> bool:
        """Whether no singular value lies between the two tolerances."""
        return not bool(((self.values > ZERO * self._scale) & ~self._clear).any())

    @property
    def smallest(self) -> float:
        """The smallest singular value that counts as positive; infinite where none does."""
        return float(self.values[self.rank - 1]) if self.rank else np.inf

    @property
    def null_basis(self) -> np.ndarray:
        """An orthonormal basis of the null space, ``(n, n - rank)``."""
        return self.right[self.rank :].T

    def solve(self, side: np.ndarray) -> np.ndarray:
        """The shortest least-squares solution x ``(n,)`` of A x = side ``(m,)``."""
        coefficients = (self.left.T @ side)[: self.rank] / self.values[: self.rank]
        return coefficients @ self.right[: self.rank]

    @property
    def _scale(self) -> float:
        return float(self.values.max(initial=0.0))

    @property
    def _clear(self) -> np.ndarray:
        return self.values > CLEAR * self._scale


def decompose(matrix: np.ndarray) -> Decomposition:
    """Decomposes a matrix ``(m, n)``; m or n may be 0."""
    rows, columns = matrix.shape
    if rows == 0 or columns == 0:
        small = min(rows, columns)
        return Decomposition(np.zeros((rows, small)), np.zeros(small), np.eye(columns))
    if rows > 2 * columns:
        # First to a square: the left vectors of a tall matrix would cost most.
        tall, square = linalg.qr(matrix, mode="economic")
        left, values, right = linalg.svd(square)
        return Decomposition(tall @ left, values, right)
    left, values, right = linalg.svd(matrix, full_matrices=columns > rows)
    return Decomposition(left[:, : len(values)], values, right)


def clearly_injective(matrix: np.ndarray) -> bool:
    """A cheap proof that the columns of a matrix ``(m, n)`` are independent, or False for unknown.

    By the eigenvalues of the Gram matrix, whose rounding hides relative singular values below
    about 1e-7.
    """
    rows, columns = matrix.shape
    if rows < columns or columns == 0:
        return columns == 0
    values = linalg.eigvalsh(matrix.T @ matrix)
    return bool(values[0] > (100 * CLEAR) ** 2 * values[-1])
