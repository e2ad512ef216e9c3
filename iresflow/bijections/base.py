"""The contract of every invertible map, and the composition of maps.

*Forward* is data to latent. ``forward(x)`` gives ``(z, log_det)`` with ``log_det`` the natural
logarithm of the absolute Jacobian determinant of the forward map, ``(B,)``, so that log-dets add
along a composition. ``transform(x)`` gives z alone and skips the log-determinant, which is the
costly part. ``invert(z)`` gives x with what is known of its error; ``inverse(z)`` gives x alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, cast, final

from torch import Tensor, nn
from torch.distributions import constraints

from iresflow.ambient import WideFloats
from iresflow.bijections.inverse import Accuracy, Inverse, require_finite, warn_of_floor
from iresflow.bijections.stretch import Stretch
from iresflow.linearization import Linearization
from iresflow.logdet.base import LogDetEstimate
from iresflow.streams import Stream

__all__ = ["Bijection", "Composition", "LogDet", "StreamedLogDet"]

LogDet = Callable[[Linearization], LogDetEstimate]
"""An estimator with its random stream bound to it."""


class StreamedLogDet(Protocol):
    """An estimator that takes its random stream with each linearization."""

    def __call__(
        self, linearization: Linearization, generator: Stream | None = None
    ) -> LogDetEstimate: ...


class Bijection(WideFloats, nn.Module, ABC):
    """An invertible map with a tractable log-determinant, on batches ``(B, *event)``.

    Every method takes an optional context ``(B, context_dim)``; maps that have no use for it
    ignore it.

    Attributes:
        domain: Where each entry of x may lie.
    """

    domain: constraints.Constraint = constraints.real

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
        """x with solver steps and certified errors, in z's type of float.

        A z in float64 keeps its digits in a map with float32 parameters: the map is that of the
        same numbers, rounded less. The result is differentiable in z, context and parameters.

        Raises:
            InversionError: a block missed its tolerance, or met a value that is not finite.
            NotContractiveError: a block has no certified Lipschitz bound below 1.
            NotInitializedError: an ActNorm has not seen data.
        """

    @final
    def inverse(
        self, z: Tensor, context: Tensor | None = None, tol: float | None = None
    ) -> Tensor:
        """x alone, each block to a certified error of tol, or of `Accuracy`'s default.

        Warns:
            InversionWarning: the tolerance is below what the type of float allows.

        Raises:
            InversionError: the result is not finite.

        Other errors: as `invert`.
        """
        result = self.invert(z, context, None if tol is None else Accuracy(tol))
        require_finite(result.value)
        if tol is not None:
            warn_of_floor(result.error, result.floor, tol, z.dtype)
        return result.value

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

    def defect(self) -> str | None:
        """What makes this map itself, apart from its parts, no bijection in floats; or None.

        Numbers that are not finite, and the bounds of blocks, are looked at elsewhere.
        """
        return None


@final
class Composition(Bijection):
    """Maps applied one after another; without any, the identity.

    Arguments:
        maps: The first to act on x comes first.
    """

    def __init__(self, maps: Iterable[Bijection] = ()) -> None:
        super().__init__()
        self.maps = cast(Sequence[Bijection], nn.ModuleList(maps))

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
