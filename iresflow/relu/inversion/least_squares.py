"""Least squares on the active rows: it often is the answer, and else it tells the rank."""

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy import sparse

from iresflow.relu.inversion.preactivation_ranges import Ranges
from iresflow.relu.networks.affine import Matrix
from iresflow.relu.ranks import Verdict, shortest_solution

__all__ = ["LeastSquares", "consistent", "least_squares"]


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
    determined: Verdict
    gain: float


def least_squares(matrix: Matrix, ranges: Ranges) -> LeastSquares:
    """Solves the active rows; where the rank is not full, z is the shortest solution.

    Arguments:
        matrix: A, ``(n, k)``.
        ranges: Whose active rows have equal limits.
    """
    scales = ranges.low_rate[ranges.active]  # a LeakyReLU's left piece has a smaller scale
    rows = sparse.diags_array(1 / scales) @ matrix[ranges.active]
    z, spectrum = shortest_solution(rows, ranges.low[ranges.active] / scales)
    determined = spectrum.spans(matrix.shape[1])
    gain = np.inf
    if determined != "no":
        gain = float(spectrum.values.pow(-2).mean().sqrt())
    return LeastSquares(z, ranges.active, determined, gain)


def consistent(
    matrix: Matrix, ranges: Ranges, z: np.ndarray, lower: float, tolerance: float
) -> bool:
    """Whether z meets all limits without noise, up to a tolerance."""
    if (z < lower - tolerance).any():
        return False
    value = matrix @ z
    return bool(
        (value >= ranges.low - tolerance).all() and (value <= ranges.high + tolerance).all()
    )
