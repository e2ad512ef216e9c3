r"""What is solved, who proposes the iterates, and what comes out.

All norms are Euclidean, for each sample over all of its entries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.linearization import Products
from iresflow.tensors import norm_per_sample

__all__ = [
    "Arithmetic",
    "Map",
    "Proposer",
    "Solution",
    "Solver",
    "check_counts",
    "product_map",
]

Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""g for some samples of a batch: points ``(N, *event)`` and sample indices ``(N,)`` to values
``(N, *event)`` and, ``(N,)``, bounds of the norm of their rounding error in units of eps."""

PRODUCT_ROUNDING = 100.0
"""Rounding of a product with J, in units of eps times the sizes of its operand and result. It only
tells when the residual of a linear equation may be noise; nothing is certified with it."""


@final
@dataclass(frozen=True)
class Arithmetic:
    """A map in one floating-point type.

    Attributes:
        g: The map, for points of that type.
        dtype: The type.
        linearize: The products with g's Jacobians at points ``(N, *event)`` of that type, of
            samples with indices ``(N,)``; None where g is not refined by them.
    """

    g: Map
    dtype: torch.dtype
    linearize: Callable[[Tensor, Tensor], Products] | None = None


def product_map(
    product: Callable[[Products, Tensor], Tensor], products: Products, count: int
) -> Map:
    """A product with the Jacobians at a batch of points, as a map of vectors.

    Arguments:
        product: Takes products and directions ``(1, N, *event)``: a vjp or a jvp.
        products: At the batch's points.
        count: The size of that batch.
    """

    def apply(v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        some = products if len(index) == count else products.narrow(index)
        image = product(some, v[None])[0]
        return image, PRODUCT_ROUNDING * (norm_per_sample(v) + norm_per_sample(image))

    return apply


class Proposer(ABC):
    """What a solver remembers of one batch of samples."""

    @abstractmethod
    def propose(
        self, residual: Tensor, move: Tensor | None, change: Tensor | None
    ) -> Tensor | None:
        """The move ``(N, *event)`` from the last point to the next; None for the residual.

        Arguments:
            residual: r at the last point, ``(N, *event)``.
            move: From the point before to the last one, whoever chose it; None at the first.
            change: What the residual changed by in that move.
        """

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Forgets the samples but those of a mask ``(N,)``."""


def check_counts(**counts: int) -> None:
    """Raises a ValueError where a setting of a solver, by its name, is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


class Solver(ABC):
    """Proposes iterates. A subclass is a frozen dataclass of its settings.

    Nothing that it proposes is trusted: the driver certifies from residuals alone, and does
    without proposals that do not pay (`iresflow.solvers.driver`).
    """

    max_steps: int

    @abstractmethod
    def begin(self) -> Proposer:
        """For one batch."""


@final
@dataclass(frozen=True)
class Solution:
    """The outcome of a solve, for a batch of B samples.

    Attributes:
        value: x, ``(B, *event)``, in the type of the last arithmetic.
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
