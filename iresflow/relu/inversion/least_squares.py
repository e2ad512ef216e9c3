"""Least squares on the active rows: it often is the answer, and else it tells the rank."""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from scipy import linalg, sparse

from iresflow.relu.inversion.preactivation_ranges import Ranges
from iresflow.relu.networks.network import Layer

__all__ = ["LeastSquares", "consistent", "least_squares"]

FULL = 1e-7
"""Smallest ratio of pivots that counts as full rank without a doubt."""

LARGEST_DENSE = 2**27
"""Entries of the largest matrix that is factorised: 1 GiB."""


@final
@dataclass(frozen=True, eq=False)
class LeastSquares:
    """A least-squares solution, and whether it is the only one.

    Attributes:
        z: ``(k,)``.
        active: The rows that were asked for, ``(n,)`` bool.
        determined: Whether they have full column rank.
        gain: Root mean square of the standard deviations of z's entries, for independent noise of
            deviation 1 in the rows; infinite where the rank is not full.
    """

    z: np.ndarray
    active: np.ndarray
    determined: Literal["yes", "no", "uncertain"]
    gain: float


def least_squares(layer: Layer, matrix: sparse.csc_array, ranges: Ranges) -> LeastSquares:
    """Solves the active rows by a QR decomposition with column pivoting.

    The ratio of the last pivot to the first stands for that of the singular values, which it
    overestimates by little as a rule. Where the rank is not full, z is a basic solution.

    Arguments:
        layer: Whose dense matrix is taken, if it is dense.
        matrix: A, ``(n, k)``.
        ranges: Whose active rows have equal limits.

    Raises:
        ValueError: the active rows have too many entries to be factorised.
    """
    size = matrix.shape[1]
    rows = np.flatnonzero(ranges.active)
    if len(rows) * size > LARGEST_DENSE:
        raise ValueError(
            f"layer {layer.name} has {len(rows)} active rows of {size} entries; allowed are "
            f"{LARGEST_DENSE} entries together"
        )
    z = np.zeros(size)
    if len(rows) == 0:
        return LeastSquares(z, ranges.active, "no", np.inf)
    full = layer.affine.matrix()
    active = full[rows].toarray() if sparse.issparse(full) else full[rows]
    scales = ranges.low_rate[rows]  # a LeakyReLU's left piece is observed at a smaller scale
    q, r, order = linalg.qr(active / scales[:, None], mode="economic", pivoting=True)
    pivots = np.abs(np.diag(r))
    rounding = max(active.shape) * np.finfo(float).eps
    rank = int((pivots > 1e-12 * pivots[0]).sum()) if pivots[0] > 0 else 0
    side = q.T @ (ranges.low[rows] / scales)
    z[order[:rank]] = linalg.solve_triangular(r[:rank, :rank], side[:rank])
    if len(pivots) < size or not pivots[-1] > rounding * pivots[0]:
        return LeastSquares(z, ranges.active, "no", np.inf)
    inverse, _ = linalg.lapack.dtrtri(r)
    gain = float(np.linalg.norm(np.triu(inverse)) / np.sqrt(size))
    determined = "yes" if pivots[-1] > FULL * pivots[0] else "uncertain"
    return LeastSquares(z, ranges.active, determined, gain)


def consistent(
    matrix: sparse.csc_array, ranges: Ranges, z: np.ndarray, lower: float, tolerance: float
) -> bool:
    """Whether z meets all limits without noise, up to a tolerance."""
    if (z < lower - tolerance).any():
        return False
    value = matrix @ z
    return bool(
        (value >= ranges.low - tolerance).all() and (value <= ranges.high + tolerance).all()
    )
