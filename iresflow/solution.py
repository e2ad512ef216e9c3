"""What an equation x + g(x) = y is solved to, and by which iteration where that is compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor

__all__ = ["FusedSolve", "MixedIteration", "Solution"]


@final
@dataclass(frozen=True)
class Solution:
    """The outcome of a solve, for a batch of B samples.

    Attributes:
        value: x, ``(B, *event)``, in the type of the last map.
        steps: Evaluations of g, linearizations and products with its Jacobian for each sample,
            ``(B,)`` integers.
        error: Certified upper bound of the distance to the exact solution, ``(B,)``, rounding
            included. It exceeds the tolerance only where rounding allows no better, and then is at
            most twice `floor`.
        floor: What rounding alone adds to that bound, ``(B,)``: no tolerance below it can be
            certified in that type.
    """

    value: Tensor
    steps: Tensor
    error: Tensor
    floor: Tensor


@final
@dataclass(frozen=True)
class MixedIteration:
    """The fixed-point iteration, its last moves mixed as `iresflow.solvers.Anderson` does.

    Attributes:
        lipschitz: Certified upper bound of the Lipschitz constant of g, below 1.
        tol: Largest certified distance from the solution, Euclidean.
        memory: Moves that are mixed; 0 for the plain iteration.
        max_steps: Evaluations of g for a sample at most.
    """

    lipschitz: float
    tol: float
    memory: int
    max_steps: int


FusedSolve = Callable[[Tensor, MixedIteration], Solution | None]
"""Solves for y ``(B, *event)`` in one pass; None where a sample has no certified solution."""
