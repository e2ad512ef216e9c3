"""What an observed output says about the pre-activations of one layer."""

from dataclasses import dataclass
from typing import final

import numpy as np

__all__ = ["Ranges", "observed_ranges"]


@final
@dataclass(frozen=True, eq=False)
class Ranges:
    """Limits of A z, as the noise s >= 0 widens them: low - a s <= (A z)_j <= high + b s.

    The bias is subtracted already. Where the output is known to come from one piece of the
    activation, low and high are equal; such rows are *active*.

    Attributes:
        low, high: ``(n,)``; low is -infinity below zeros of a ReLU.
        low_rate, high_rate: a and b, ``(n,)``.
        active: ``(n,)`` bool.
    """

    low: np.ndarray
    high: np.ndarray
    low_rate: np.ndarray
    high_rate: np.ndarray
    active: np.ndarray

    def same(self, other: "Ranges | None") -> bool:
        """Whether another one says the same, so that a program need not be solved again."""
        return (
            other is not None
            and np.array_equal(self.active, other.active)
            and np.array_equal(self.low, other.low)
            and np.array_equal(self.high, other.high)
        )


def observed_ranges(bias: np.ndarray, slope: float, x: np.ndarray, epsilon: float) -> Ranges:
    """The rows of the l-infinity and l1 programs, by the activation's slope c, from 0 to 1.

    Rows with x > epsilon come from the right piece, those with x < -epsilon of a LeakyReLU from
    the left one, and in between it is open. Two deviations from the supplement: 1. A ReLU's
    negative observations are set to 0, the nearest value that the layer can give. 2. Between, for
    0 < x <= epsilon, it asks for (x - e) / c <= w z, which a noiseless z itself does not meet
    (w z = x < x / c); the lower limit x - e / c holds for every noise up to e.

    Arguments:
        bias: b of the layer, ``(n,)``.
        slope: c.
        x: The observation, ``(n,)``.
        epsilon: Threshold below which a row's piece counts as unknown.
    """
    ones = np.ones(len(x))
    if slope == 0:
        x = np.maximum(x, 0.0)
        active = x > epsilon
        return Ranges(np.where(active, x, -np.inf) - bias, x - bias, ones, ones, active)
    if slope == 1:
        return Ranges(x - bias, x - bias, ones, ones, ones.astype(bool))
    left, right = x < -epsilon, x > epsilon
    low = np.where(x > 0, x, x / slope)
    high = np.where(left, x / slope, x)
    return Ranges(
        low - bias,
        high - bias,
        np.where(right, 1.0, 1 / slope),
        np.where(left, 1 / slope, 1.0),
        left | right,
    )
