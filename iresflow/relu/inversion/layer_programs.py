"""The linear programs that invert one layer: l-infinity, l1 and relaxed.

From Q. Lei, A. Jalal, I. S. Dhillon, A. G. Dimakis, "Inverting Deep Generative Models, One Layer
at a Time", NeurIPS 2019, as its supplement states them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from scipy import sparse

from iresflow.relu.inversion.preactivation_ranges import Ranges, observed_ranges
from iresflow.relu.networks.affine import Matrix
from iresflow.relu.programs import Program

__all__ = ["InfinityNorm", "LayerMethod", "OneNorm", "Relaxed"]


class LayerMethod(ABC):
    """How the input of one layer is found from its output.

    Attributes:
        name: For tables.
        order: Of the norm in which reconstruction errors are compared: 1 or infinity.
        fits: Whether the objective is the size of the misfit, so that 0 proves a point optimal.
    """

    name: ClassVar[str]
    order: ClassVar[float]
    fits: ClassVar[bool]

    def ranges(self, bias: np.ndarray, slope: float, x: np.ndarray, epsilon: float) -> Ranges:
        """The limits of A z that the program asks for."""
        return observed_ranges(bias, slope, x, epsilon)

    @abstractmethod
    def program(self, matrix: Matrix, x: np.ndarray, ranges: Ranges, lower: float) -> Program:
        """The program, the first unknowns of which are z.

        Arguments:
            matrix: A, ``(n, k)``.
            x: The observation, ``(n,)``.
            ranges: Of the method.
            lower: Of each entry of z, or -infinity.
        """


@final
@dataclass(frozen=True)
class InfinityNorm(LayerMethod):
    """Minimise delta, where all rows are met up to delta (Algorithm 1)."""

    name = "l-infinity"
    order = np.inf
    fits = True

    def program(self, matrix: Matrix, x: np.ndarray, ranges: Ranges, lower: float) -> Program:
        count, size = matrix.shape
        columns = sparse.csc_array(matrix)
        rates = np.concatenate([-ranges.high_rate, ranges.low_rate])
        rows = sparse.hstack(
            [sparse.vstack([columns, columns]), sparse.csc_array(rates[:, None])], format="csc"
        )
        none = np.full(count, np.inf)
        return Program(
            np.append(np.zeros(size), 1.0),
            rows,
            np.concatenate([-none, ranges.low]),
            np.concatenate([ranges.high, none]),
            np.append(np.full(size, lower), 0.0),
        )


@final
@dataclass(frozen=True)
class OneNorm(LayerMethod):
    """Minimise the sum of one non-negative slack a row (Algorithm 2).

    A slack e for both sides of a row is one of them at a time: above, q, or below, p. So a row is
    low <= A z - b q + a p <= high, one instead of two.
    """

    name = "l1"
    order = 1.0
    fits = True

    def program(self, matrix: Matrix, x: np.ndarray, ranges: Ranges, lower: float) -> Program:
        count, size = matrix.shape
        above = sparse.diags_array(-ranges.high_rate, format="csc")
        below = sparse.diags_array(ranges.low_rate, format="csc")
        return Program(
            np.concatenate([np.zeros(size), np.ones(2 * count)]),
            sparse.hstack([sparse.csc_array(matrix), above, below], format="csc"),
            ranges.low,
            ranges.high,
            np.concatenate([np.full(size, lower), np.zeros(2 * count)]),
        )


@final
@dataclass(frozen=True)
class Relaxed(LayerMethod):
    """Maximise the correlation with the observation below it (Algorithm 3, and eq. 9).

    For ReLU: max sum_i max(0, x_i) w_i z subject to w_i z <= x_i + epsilon. For LeakyReLU of
    slope c: max x^T W z subject to min(x_i - epsilon, 0) / c <= w_i z <= max(x_i + epsilon, 0).
    """

    name = "relaxed"
    order = 1.0
    fits = False

    def ranges(self, bias: np.ndarray, slope: float, x: np.ndarray, epsilon: float) -> Ranges:
        ones = np.ones(len(x))
        none = np.zeros(len(x), dtype=bool)
        if slope == 0:
            x = np.maximum(x, 0.0)  # as in observed_ranges
            return Ranges(np.full(len(x), -np.inf), x + epsilon - bias, ones, ones, none)
        low = np.minimum(x - epsilon, 0) / slope
        return Ranges(low - bias, np.maximum(x + epsilon, 0) - bias, ones, ones, none)

    def program(self, matrix: Matrix, x: np.ndarray, ranges: Ranges, lower: float) -> Program:
        # For ReLU there are no lower limits, and no row weighs less than nothing.
        weights = np.maximum(x, 0) if np.isneginf(ranges.low).all() else x
        return Program(-(matrix.T @ weights), matrix, ranges.low, ranges.high, lower)
