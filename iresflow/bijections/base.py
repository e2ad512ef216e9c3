"""The contract of every invertible map, and the composition of maps.

*Forward* is data to latent. ``forward(x)`` gives ``(z, log_det)`` with ``log_det`` the natural
logarithm of the absolute Jacobian determinant of the forward map, ``(B,)``, so that log-dets add
along a composition. ``transform(x)`` gives z alone and skips the log-determinant, which is the
costly part. ``invert(z)`` gives x with what is known of its error; ``inverse(z)`` gives x alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from iresflow.linearization import Linearization
from iresflow.lipschitz.stretch import Stretch
from iresflow.logdet.base import LogDetEstimate
from iresflow.solvers import FixedPoint, Solver

__all__ = ["Accuracy", "Bijection", "Composition", "Inverse", "LogDet"]

LogDet = Callable[[Linearization], LogDetEstimate]
"""An estimator with its random stream bound to it."""


@final
@dataclass(frozen=True)
class Accuracy:
    """How exact an inverse is to be.

    Attributes:
        tol: Largest certified Euclidean error of each residual block's inverse, in the units of
            the block's input. 0 asks for all that the floating-point format allows.
        solver: The solver of the blocks.

    Raises:
        ValueError: tol is negative or not a number.
    """

    tol: float = 1e-5
    solver: Solver = FixedPoint()

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or positive, got {self.tol}")


@final
@dataclass(frozen=True)
class Inverse:
    """An inverse and what is known of it, for a batch of B samples.

    Attributes:
        value: x, ``(B, *event)``.
        steps: Evaluations of residual branches, summed over the blocks, ``(B,)``.
        error: The largest certified error of any one block's inverse, ``(B,)``. It is above the
            tolerance only where the floating-point format allows no better.
    """

    value: Tensor
    steps: Tensor
    error: Tensor

    @staticmethod
    def closed_form(value: Tensor) -> "Inverse":
        """An inverse by formula: no steps, and no error but that of the arithmetic."""
        batch = value.shape[0]
        steps = torch.zeros(batch, dtype=torch.long, device=value.device)
        return Inverse(value, steps, value.new_zeros(batch))

    def after(self, later: "Inverse") -> "Inverse":
        """This inverse with the counts of the maps that were inverted before it."""
        return Inverse(
            self.value, self.steps + later.steps, torch.maximum(self.error, later.error)
        )


class Bijection(nn.Module, ABC):
    """An invertible map with a tractable log-determinant, on batches ``(B, *event)``.

    Every method takes an optional context ``(B, context_dim)``; maps that have no use for it
    ignore it.
    """

    @abstractmethod
    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        """z and the log-determinant ``(B,)`` of the forward map.

        Arguments:
            x: ``(B, *event)``.
            context: ``(B, context_dim)`` or None.
            log_det: The estimator of maps without a closed form; None for their own.
        """

    @abstractmethod
    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """z alone, without the cost of the log-determinant."""

    @abstractmethod
    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        """x with solver steps and certified errors.

        Raises:
            InversionError: a block missed its tolerance.
            NotContractiveError: a block has no certified Lipschitz bound below 1.
            NotInitializedError: an ActNorm has not seen data.
        """

    @final
    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """x alone, to the default accuracy."""
        return self.invert(z, context).value

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Sets what is to be set from data (ActNorm) and returns ``transform(x)``."""
        return self.transform(x, context)

    def parts(self, dim: int) -> Iterator[tuple[str, "Bijection", int]]:
        """The maps that this one consists of, as submodule names, maps and dimensions.

        Arguments:
            dim: The dimension of one sample; each part comes with that of what it acts on.
        """
        return iter(())

    def stretch(self, dim: int) -> Stretch:
        """Certified bounds of the Lipschitz constants and the log-determinant.

        Those that hold of any bijection, unless a subclass knows better.

        Arguments:
            dim: The dimension of one sample.
        """
        return Stretch.unknown()


@final
class Composition(Bijection):
    """Maps applied one after another; without any, the identity.

    Arguments:
        maps: The first to act on x comes first.
    """

    def __init__(self, maps: Iterable[Bijection] = ()) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for bijection in self.maps:
            x, term = bijection(x, context, log_det)
            total = total + term
        return x, total

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for bijection in self.maps:
            x = bijection.transform(x, context)
        return x

    def parts(self, dim: int) -> Iterator[tuple[str, Bijection, int]]:
        for index, bijection in enumerate(self.maps):
            yield f"maps.{index}", bijection, dim

    def stretch(self, dim: int) -> Stretch:
        total = Stretch()
        for bijection in self.maps:
            total = total.then(bijection.stretch(dim))
        return total

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        result = Inverse.closed_form(z)
        for bijection in reversed(self.maps):
            result = bijection.invert(result.value, context, accuracy).after(result)
        return result

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        for bijection in self.maps:
            x = bijection.initialize(x, context)
        return x
