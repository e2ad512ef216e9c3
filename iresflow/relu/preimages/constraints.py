r"""The mixed linear system whose solutions are a preimage (thesis, equations 3.1 and 3.2).

:math:`\{x : s(A x + b) = y\}` are the solutions of :math:`A|_{y>0} x + b|_{y>0} = y|_{y>0}` and
:math:`A|_{y=0} x + b|_{y=0} \le 0`, for ReLU. The activations LeakyReLU and none are injective:
all rows are equations then. What else is known of x adds inequalities (remark 3.2).
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from iresflow.errors import NoPreimageError
from iresflow.relu.networks.affine import Matrix, as_array
from iresflow.relu.networks.network import Layer

__all__ = [
    "BOX",
    "NON_NEGATIVE",
    "ANYTHING",
    "Between",
    "System",
    "layer_system",
    "preimage_system",
]


@final
@dataclass(frozen=True)
class Between:
    """What is known of x: each coordinate lies between two limits.

    Arguments:
        low: A number, or one for each coordinate, ``(n,)``; -inf for none.
        high: Likewise, with inf for none.
    """

    low: float | np.ndarray = -np.inf
    high: float | np.ndarray = np.inf

    def limits(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Both limits as ``(n,)``.

        Raises:
            ValueError: NaN, another shape, or a lower limit above an upper one.
        """
        try:
            low, high = (
                np.broadcast_to(np.asarray(v, float), size) for v in (self.low, self.high)
            )
        except ValueError:
            shapes = f"{np.shape(self.low)} and {np.shape(self.high)}"
            raise ValueError(f"limits have shapes {shapes}; allowed is () or ({size},)") from None
        if not (low <= high).all() or (low == np.inf).any() or (high == -np.inf).any():
            raise ValueError("limits must be numbers, the lower ones at most the upper ones")
        return low, high


ANYTHING = Between()
"""Nothing is known of x."""

NON_NEGATIVE = Between(low=0.0)
"""x is the output of another ReLU layer."""

BOX = Between(0.0, 1.0)
"""x is an image."""


@final
@dataclass(frozen=True, eq=False)
class System:
    """E x = f, G x <= h and low <= x <= high, for x of shape ``(n,)``.

    Attributes:
        equal: (E, f), shapes ``(p, n)`` and ``(p,)``.
        below: (G, h), shapes ``(q, n)`` and ``(q,)``.
        low: ``(n,)``.
        high: ``(n,)``.
    """

    equal: tuple[np.ndarray, np.ndarray]
    below: tuple[np.ndarray, np.ndarray]
    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """n."""
        return self.equal[0].shape[1]

    def inequalities(self) -> tuple[np.ndarray, np.ndarray]:
        """G x <= h with the finite limits of x among the rows."""
        eye = np.eye(self.size)
        above, under = np.isfinite(self.low), np.isfinite(self.high)
        matrix = np.concatenate([self.below[0], -eye[above], eye[under]])
        return matrix, np.concatenate([self.below[1], -self.low[above], self.high[under]])

    def violation(self, x: np.ndarray) -> float:
        """How far x ``(n,)`` or ``(N, n)`` is from a solution: the largest violation of a row."""
        points = np.atleast_2d(x)
        parts = [
            np.abs(points @ self.equal[0].T - self.equal[1]),
            points @ self.below[0].T - self.below[1],
            self.low - points,
            points - self.high,
        ]
        return max(float(part.max(initial=0.0)) for part in parts)


def preimage_system(
    weight: Matrix | torch.Tensor,
    bias: np.ndarray | torch.Tensor,
    y: np.ndarray | torch.Tensor,
    *,
    slope: float = 0.0,
    prior: Between = ANYTHING,
) -> System:
    """The system of the preimage of y under x -> s(A x + b).

    Arguments:
        weight: A, shape ``(m, n)``.
        bias: b, shape ``(m,)``.
        y: The output, shape ``(m,)``.
        slope: Of s on the negative side: 0 for ReLU, above 0 for LeakyReLU, 1 for none.
        prior: What is known of x.

    Raises:
        ValueError: shapes that don't fit, values that are not finite, a negative slope.
        NoPreimageError: ReLU has no negative outputs, and y has.
    """
    a, b, target = as_array(weight, "weight", 2), as_array(bias, "bias", 1), as_array(y, "y", 1)
    rows, size = a.shape
    if len(b) != rows or len(target) != rows:
        raise ValueError(
            f"weight has shape {a.shape}, bias {b.shape} and y {target.shape}; allowed are bias "
            f"and y of shape ({rows},)"
        )
    if not (np.isfinite(slope) and slope >= 0):
        raise ValueError(f"slope={slope}; allowed is 0 or more")
    low, high = prior.limits(size)
    if slope > 0:
        before = np.where(target > 0, target, target / slope)
        return System((a, before - b), (a[:0], b[:0]), low, high)
    if (target < 0).any():
        worst = int(target.argmin())
        raise NoPreimageError(
            f"no preimage: output {worst} is {target[worst]:.3g}, and ReLU gives 0 or more"
        )
    active = target > 0
    return System((a[active], target[active] - b[active]), (a[~active], -b[~active]), low, high)


def layer_system(layer: Layer, y: np.ndarray | torch.Tensor, prior: Between = ANYTHING) -> System:
    """The system of the preimage of y ``(m,)`` under a layer. Errors: see `preimage_system`."""
    affine = layer.affine
    return preimage_system(affine.dense(), affine.bias, y, slope=layer.slope, prior=prior)
