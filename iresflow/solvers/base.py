r"""What is solved, who proposes the iterates, and what comes out.

All norms are Euclidean, for each sample over all of its entries.
"""

from abc import ABC, abstractmethod
from operator import methodcaller
from typing import Literal, Protocol, final

import torch
from torch import Tensor

from iresflow.linearization import Jacobian
from iresflow.tensors import norm_per_sample

__all__ = [
    "JacobianProduct",
    "Proposer",
    "RefinableMap",
    "RoundedMap",
    "Solver",
    "check_counts",
]

PRODUCT_ROUNDING = 100.0
"""Rounding of a product with J, in units of eps times the sizes of its operand and result. It only
tells when the residual of a linear equation may be noise; nothing is certified with it."""


class RoundedMap(Protocol):
    """A map g in one floating-point type, with a bound of its rounding."""

    @property
    def dtype(self) -> torch.dtype:
        """The type."""
        ...

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """g for some samples of a batch.

        Arguments:
            x: Points ``(N, *event)`` of the type.
            index: The samples' indices ``(N,)`` in the batch.

        Returns:
            g ``(N, *event)``, and bounds ``(N,)`` of the norm of its rounding in units of eps.
        """
        ...


class RefinableMap(RoundedMap, Protocol):
    """A map whose solutions are refined by products with its Jacobians."""

    def jacobian(self, x: Tensor, index: Tensor) -> Jacobian:
        """The Jacobians at points, as for a call."""
        ...


@final
class JacobianProduct:
    """Products with the Jacobians at a batch of points, as a `RoundedMap` of vectors.

    Arguments:
        jacobian: At the batch's points.
        kind: ``jvp`` or ``vjp``.
        count: The size of that batch.
        dtype: Of the vectors.
    """

    def __init__(
        self, jacobian: Jacobian, kind: Literal["jvp", "vjp"], count: int, dtype: torch.dtype
    ) -> None:
        self.dtype = dtype
        self._jacobian = jacobian
        self._kind = kind
        self._count = count

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        every = len(index) == self._count
        some = self._jacobian if every else self._jacobian.rows(index)
        image = methodcaller(self._kind, x[None])(some)[0]
        return image, PRODUCT_ROUNDING * (norm_per_sample(x) + norm_per_sample(image))


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
        """Forgets the samples but those at some positions, integers ``(M,)``."""


def check_counts(**counts: int) -> None:
    """Raises a ValueError where a setting of a solver, by its name, is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


class Solver(ABC):
    """Proposes iterates. A subclass is a frozen dataclass of its settings.

    Nothing that it proposes is trusted: the driver certifies from residuals alone, and does
    without proposals that do not pay (`iresflow.solvers.residuals`).
    """

    max_steps: int

    @abstractmethod
    def begin(self) -> Proposer:
        """For one batch."""

    def mixed(self) -> int | None:
        """How many moves it mixes in the way of `Anderson`; None for a solver of another way."""
        return None
