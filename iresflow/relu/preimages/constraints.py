r"""The equations and inequalities whose solutions are a preimage (thesis, equations 3.1 and 3.2).

:math:`\{x : s(A x + b) = y\}` are the solutions of :math:`A|_{y>0} x + b|_{y>0} = y|_{y>0}` and
:math:`A|_{y=0} x + b|_{y=0} \le 0`, for ReLU. The activations LeakyReLU and none are injective:
all rows are equations then. What else is known of x adds inequalities (remark 3.2).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from scipy import sparse

from iresflow.errors import NoPreimageError
from iresflow.relu.networks.affine import Matrix, as_array
from iresflow.relu.networks.network import Layer
from iresflow.relu.ranks import row_lengths

__all__ = ["ANYTHING", "BOX", "NON_NEGATIVE", "Between", "Constraints", "preimage_constraints"]


@final
@dataclass(frozen=True)
class Between:
    """What is known of x: each coordinate lies between two limits.

    Arguments:
        low: A number, or one for each coordinate, ``(n,)``; -inf for none.
        high: Likewise, with inf for none.
    """

    low: float | np.ndarray | torch.Tensor = -np.inf
    high: float | np.ndarray | torch.Tensor = np.inf

    def limits(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Both limits as arrays ``(n,)``.

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
class Constraints:
    """E x = f, G x <= h and low <= x <= high, for x of shape ``(n,)``: as the solver takes them.

    Attributes:
        equal: (E, f), shapes ``(p, n)`` and ``(p,)``.
        below: (G, h), shapes ``(q, n)`` and ``(q,)``.
        low: ``(n,)``.
        high: ``(n,)``.
    """

    equal: tuple[Matrix, np.ndarray]
    below: tuple[Matrix, np.ndarray]
    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """n."""
        return self.equal[0].shape[1]

    @cached_property
    def inequalities(self) -> tuple[Matrix, np.ndarray]:
        """G x <= h with the finite limits of x among the rows, ``(r, n)`` and ``(r,)``."""
        matrix, side = self.below
        above, under = np.isfinite(self.low), np.isfinite(self.high)
        eye = sparse.eye_array(self.size, format="csr")
        rows = sparse.vstack([sparse.csr_array(matrix), -eye[above], eye[under]], format="csr")
        side = np.concatenate([side, -self.low[above], self.high[under]])
        return rows if sparse.issparse(matrix) else rows.toarray(), side

    @cached_property
    def unit(self) -> float:
        """A length in the units of x: the largest distance of a row's hyperplane from 0.

        It is 1 where all of them meet there, and no length is longer than another.
        """
        parts = [abs(side) / row_lengths(rows) for rows, side in (self.equal, self.inequalities)]
        return float(np.concatenate(parts).max(initial=0.0)) or 1.0

    def normalised(self) -> "Constraints":
        """The same for x / unit, with rows of norm 1: the solver's tolerance is a number."""

        def scaled(rows: Matrix, side: np.ndarray) -> tuple[Matrix, np.ndarray]:
            norms = row_lengths(rows)
            return sparse.diags_array(1 / norms) @ rows, side / norms / self.unit

        return Constraints(
            scaled(*self.equal), scaled(*self.below), self.low / self.unit, self.high / self.unit
        )

    def violation(self, x: np.ndarray) -> float:
        """How far x ``(n,)`` or ``(N, n)`` is from a solution.

        The largest distance from the set that one row allows, in the units of x.
        """
        points = np.atleast_2d(x)
        (equal, f), (rows, h) = self.equal, self.inequalities
        parts = [
            abs((equal @ points.T).T - f) / row_lengths(equal),
            ((rows @ points.T).T - h) / row_lengths(rows),
        ]
        return max(float(part.max(initial=0.0)) for part in parts)


def preimage_constraints(
    layer: Layer, y: np.ndarray | torch.Tensor, prior: Between = ANYTHING
) -> Constraints:
    """What the preimage of y under a layer has to obey.

    Arguments:
        layer: x -> s(A x + b).
        y: The output, shape ``(m,)``.
        prior: What is known of x.

    Raises:
        ValueError: another shape, or values that are not finite.
        NoPreimageError: ReLU has no negative outputs, and y has.
    """
    matrix, bias = layer.affine.matrix(), as_array(layer.affine.bias, "the bias", 1)
    as_array(matrix.data if sparse.issparse(matrix) else matrix.reshape(-1), "the weight", 1)
    target = as_array(y, "y", 1)
    rows, size = matrix.shape
    if len(target) != rows:
        raise ValueError(f"y has shape {target.shape}; allowed is ({rows},)")
    low, high = prior.limits(size)
    if layer.slope > 0:
        before = np.where(target > 0, target, target / layer.slope)
        return Constraints((matrix, before - bias), (matrix[:0], bias[:0]), low, high)
    if (target < 0).any():
        worst = int(target.argmin())
        raise NoPreimageError(
            f"no preimage: output {worst} is {target[worst]:.3g}, and ReLU gives 0 or more"
        )
    on = target > 0
    return Constraints((matrix[on], target[on] - bias[on]), (matrix[~on], -bias[~on]), low, high)
