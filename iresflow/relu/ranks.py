"""Singular values, and what they say about the rank of a matrix: decided here and nowhere else.

Relative to the largest singular value, one counts as zero up to `ZERO`, and as positive above
`CLEAR`. Between them rounding decides, and the answer is "uncertain". No unit of the inputs or of
the outputs enters, since it would multiply all singular values alike.
"""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from scipy import linalg, sparse
from torch import Tensor

from iresflow.relu.networks.affine import Matrix

__all__ = [
    "CLEAR",
    "ZERO",
    "Decomposition",
    "Spectrum",
    "Verdict",
    "decompose",
    "roots_of_gram",
    "row_lengths",
    "shortest_solution",
    "singular_values",
]

Verdict = Literal["no", "uncertain", "yes"]
"""An answer to a question about a rank; from the worst to the best."""

ZERO = 1e-12
"""Relative singular value up to which one is zero: about the rounding of a decomposition."""

CLEAR = 1e-8
"""Relative singular value above which one is positive: about the rounding of float32 weights."""

RESOLVED = 1e-8
"""Smallest ratio of the eigenvalues of a Gram matrix whose roots are taken for singular values.

Rounding is about 1e-14 of the largest one, so that the smallest root is known to 1e-6 of itself.
"""

SPARSE = 0.03
"""Part of entries that are not zero below which the Gram matrix of a sparse matrix takes less."""

REFINEMENTS = 2
"""Steps by which a solution is refined: each gains eight digits where the rank is clear."""


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of a matrix ``(m, n)``.

    Attributes:
        values: All of them, falling, ``(min(m, n),)`` float64.
    """

    values: Tensor

    @property
    def rank(self) -> int:
        """Number of those that are positive beyond doubt: above `CLEAR` of the largest."""
        return self._above(CLEAR)

    @property
    def count(self) -> int:
        """Number of those that are not zero: above `ZERO` of the largest; the rank at most."""
        return self._above(ZERO)

    def spans(self, dimensions: int) -> Verdict:
        """Whether the rank is that number."""
        if self.rank >= dimensions:
            return "yes"
        return "no" if self.count < dimensions else "uncertain"

    @property
    def positive(self) -> Tensor:
        """Those that are not zero, ``(count,)``."""
        return self.values[: self.count]

    @property
    def largest(self) -> float:
        """The largest; NaN where all are zero."""
        return float(self.positive[0]) if self.count else float("nan")

    @property
    def smallest(self) -> float:
        """The smallest that is not zero; NaN where all are zero."""
        return float(self.positive[-1]) if self.count else float("nan")

    @property
    def condition(self) -> float:
        """The largest divided by the smallest that is not zero; NaN where all are zero."""
        return self.largest / self.smallest

    def _above(self, share: float) -> int:
        return int((self.values > share * self.values[:1]).sum())


@final
@dataclass(frozen=True, eq=False)
class Decomposition:
    """The singular value decomposition of a matrix ``(m, n)``, without its left vectors.

    Attributes:
        matrix: What was decomposed.
        spectrum: Its singular values.
        right: ``(n, n)``, rows are right singular vectors.
    """

    matrix: Matrix
    spectrum: Spectrum
    right: np.ndarray

    @property
    def rank(self) -> int:
        """See `Spectrum.rank`."""
        return self.spectrum.rank

    @property
    def certain(self) -> bool:
        """Whether no singular value lies between the two tolerances."""
        return self.spectrum.rank == self.spectrum.count

    @property
    def null_basis(self) -> np.ndarray:
        """An orthonormal basis of the null space, ``(n, n - rank)``."""
        return self.right[self.rank :].T

    def solve(self, side: np.ndarray) -> np.ndarray:
        """The shortest least-squares solution x ``(n,)`` of A x = side ``(m,)``."""
        seen, squares = self.right[: self.rank], self.spectrum.values[: self.rank].numpy() ** 2
        x = np.zeros(len(self.right))
        for _ in range(1 + REFINEMENTS):
            error = self.matrix.T @ (side - self.matrix @ x)
            x = x + seen.T @ (seen @ error / squares)
        return x


def singular_values(matrix: Matrix | Tensor) -> Spectrum:
    """All singular values of a matrix ``(m, n)``. Rows and columns of zeros cost nothing.

    By the Gram matrix where its eigenvalues show that rounding doesn't matter (`RESOLVED`), which
    is several times faster, and else from the matrix itself, so that small ones keep digits.

    Raises:
        ValueError: entries that are not finite.
    """
    if isinstance(matrix, Tensor):
        matrix = matrix.detach().cpu().numpy()
    size = min(matrix.shape)
    if not np.isfinite(matrix.data if sparse.issparse(matrix) else matrix).all():
        raise ValueError("the matrix holds values that are not finite")
    seen = matrix != 0
    if isinstance(matrix, np.ndarray) and np.count_nonzero(seen) < SPARSE * matrix.size:
        matrix = sparse.csr_array(matrix)
    rows, columns = (np.asarray(seen.sum(axis=axis)).ravel() > 0 for axis in (1, 0))
    # A copy of a large matrix only where something is left out.
    matrix = matrix if rows.all() else matrix[rows]
    matrix = matrix if columns.all() else matrix[:, columns]
    if 0 in matrix.shape:
        return Spectrum(torch.zeros(size, dtype=torch.float64))
    matrix = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    found = roots_of_gram(_dense(matrix.T @ matrix))
    found = linalg.svdvals(_triangle(matrix)) if found is None else found
    return Spectrum(torch.from_numpy(np.concatenate([found, np.zeros(size - len(found))])))


def roots_of_gram(gram: np.ndarray) -> np.ndarray | None:
    """The roots of a Gram matrix's eigenvalues, falling; None where rounding hides the last."""
    values = linalg.eigvalsh(gram, driver="evr", check_finite=False)[::-1]
    return np.sqrt(values) if values[-1] > RESOLVED * values[0] else None


def decompose(matrix: Matrix) -> Decomposition:
    """Decomposes a matrix ``(m, n)``; m or n may be 0."""
    rows, columns = matrix.shape
    if 0 in matrix.shape:
        values, right = np.zeros(min(rows, columns)), np.eye(columns)
    else:
        _, values, right = linalg.svd(_triangle(matrix))
    return Decomposition(matrix, Spectrum(torch.from_numpy(values)), right)


def shortest_solution(matrix: Matrix, side: np.ndarray) -> tuple[np.ndarray, Spectrum]:
    """The shortest least-squares solution x ``(n,)`` of A x = side, and A's singular values.

    By normal equations with refinement where these resolve the singular values, and else by a
    decomposition.

    Arguments:
        matrix: A, ``(m, n)``.
        side: ``(m,)``.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    if 0 not in matrix.shape:
        gram = _dense(matrix.T @ matrix if tall else matrix @ matrix.T)
        values = roots_of_gram(gram)
        if values is not None:
            factor = linalg.cho_factor(gram)
            x = np.zeros(matrix.shape[1])
            for _ in range(1 + REFINEMENTS):
                error = side - matrix @ x
                if tall:
                    x = x + linalg.cho_solve(factor, matrix.T @ error)
                else:
                    x = x + matrix.T @ linalg.cho_solve(factor, error)
            return x, Spectrum(torch.from_numpy(values))
    parts = decompose(matrix)
    return parts.solve(side), parts.spectrum


def row_lengths(rows: Matrix) -> np.ndarray:
    """The norms of rows ``(r,)``; for a row of zeros, that of the longest one, or else 1."""
    squares = rows * rows if isinstance(rows, np.ndarray) else rows.multiply(rows)
    norms = np.sqrt(np.asarray(squares.sum(axis=1)).ravel())
    return np.where(norms > 0, norms, norms.max(initial=0.0) or 1.0)


def _triangle(matrix: Matrix) -> np.ndarray:
    """A matrix of n rows at most with the same products A^T A, so the same right vectors.

    By backward stable reductions, of n rows of a tall matrix at a time: one of sparse rows is
    never made dense as a whole.
    """
    rows, columns = matrix.shape
    if rows <= 2 * columns:
        return _dense(matrix)
    triangle = np.zeros((0, columns))
    for begin in range(0, rows, columns):
        stacked = np.concatenate([triangle, _dense(matrix[begin : begin + columns])])
        triangle = linalg.qr(stacked, mode="r")[0][:columns]
    return triangle


def _dense(matrix: Matrix) -> np.ndarray:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
