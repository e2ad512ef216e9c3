"""The contract of every invertible map, and the composition of maps.

*Forward* is data to latent. ``forward(x)`` gives ``(z, log_det)`` with ``log_det`` the natural
logarithm of the absolute Jacobian determinant of the forward map, ``(B,)``, so that log-dets add
along a composition. ``transform(x)`` gives z alone and skips the log-determinant, which is the
costly part. ``invert(z)`` gives x with what is known of its error; ``inverse(z)`` gives x alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, final
from warnings import warn

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from iresflow.ambient import WideFloats
from iresflow.bijections.stretch import Stretch
from iresflow.errors import InversionError, InversionWarning, callers_level
from iresflow.linearization import Linearization
from iresflow.logdet.base import LogDetEstimate
from iresflow.solvers import Anderson, Solver
from iresflow.streams import Stream
from iresflow.tensors import widest

__all__ = [
    "Accuracy",
    "Bijection",
    "Composition",
    "Inverse",
    "LogDet",
    "StreamedLogDet",
    "require_finite",
    "warn_of_floor",
]

LogDet = Callable[[Linearization], LogDetEstimate]
"""An estimator with its random stream bound to it."""


class StreamedLogDet(Protocol):
    """An estimator that takes its random stream with each linearization."""

    def __call__(
        self, linearization: Linearization, generator: Stream | None = None
    ) -> LogDetEstimate: ...


@final
@dataclass(frozen=True)
class Accuracy:
    """How exact an inverse is to be.

    Attributes:
        tol: Largest certified Euclidean error of each residual block's inverse, in the units of
            the block's input. 0 asks for all that the floating-point format allows.
        solver: The solver of the blocks. Anderson acceleration takes the fewest evaluations of
            all that we have, on every trained model that we tried, and never more than twice those
            of `FixedPoint` at worst. It remembers ten tensors of a sample's size, less than one
            hidden layer of a branch.
        residual: Largest measured Euclidean distance of a flow's F(x) from the latent z. None for
            ``tol`` or 1e-5 in root mean square over the D dimensions, ``1e-5 * sqrt(D)``,
            whichever is larger.

    Raises:
        ValueError: tol is negative, residual not positive, or either not a number.
    """

    tol: float = 1e-5
    solver: Solver = Anderson()
    residual: float | None = None

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or positive, got {self.tol}")
        if self.residual is not None and not self.residual > 0:
            raise ValueError(f"residual must be positive or None, got {self.residual}")


@final
@dataclass(frozen=True)
class Inverse:
    """An inverse and what is known of it, for a batch of B samples.

    Attributes:
        value: x, ``(B, *event)``.
        steps: Evaluations of residual branches and products with their Jacobians, summed over the
            blocks, ``(B,)``.
        error: The largest certified error of any one block's inverse, ``(B,)``, Euclidean. It is
            above the tolerance only where rounding allows no better, and then at most twice
            `floor`.
        floor: The largest error that any one block's rounding alone makes necessary, ``(B,)``:
            no smaller tolerance can be certified in the type of float.
        bound: Upper bound of the distance of x from the exact inverse of the given z, ``(B,)``,
            Euclidean: the errors of all maps, each amplified at worst by the maps after it.
        lipschitz: Upper bound of the inverse map's Lipschitz constant.
    """

    value: Tensor
    steps: Tensor
    error: Tensor
    floor: Tensor
    bound: Tensor
    lipschitz: float

    @staticmethod
    def closed_form(
        value: Tensor, *, lipschitz: float = 1.0, rounding: Tensor | None = None
    ) -> "Inverse":
        """An inverse by formula: no steps, and no error but that of its arithmetic, ``(B,)``."""
        batch, device = value.shape[0], value.device
        steps = torch.zeros(batch, dtype=torch.long, device=device)
        zero = torch.zeros(batch, dtype=widest(device), device=device)
        return Inverse(value, steps, zero, zero, zero if rounding is None else rounding, lipschitz)

    def after(self, later: "Inverse") -> "Inverse":
        """This inverse as the next one after those of later maps, whose result it was given.

        An error e of what it was given is amplified to ``lipschitz * e`` at most.
        """
        return Inverse(
            self.value,
            self.steps + later.steps,
            torch.maximum(self.error, later.error),
            torch.maximum(self.floor, later.floor),
            self.bound + self.lipschitz * later.bound,
            self.lipschitz * later.lipschitz,
        )


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


def require_finite(x: Tensor) -> None:
    """Raises an InversionError where an inverse ``(B, *event)`` is not finite."""
    finite = x.detach().isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise InversionError(
            f"the inverses of {int((~finite).sum())} of {len(x)} samples are not finite in "
            f"{x.dtype}: what was inverted is, or the scales of the map take it beyond the "
            "largest number"
        )


def warn_of_floor(error: Tensor, floor: Tensor, tol: float, dtype: torch.dtype) -> None:
    """Says so where certified errors ``(B,)`` exceed a tolerance that was asked for.

    Warns:
        InversionWarning: with the error, the tolerance and the floor.
    """
    reached = float(error.max()) if len(error) else 0.0
    if tol > 0 and not reached <= tol:
        more = "" if dtype == torch.float64 else "; pass z.double() for more digits"
        warn(
            f"the inverse of a block is certified to {reached:.3g}, not to {tol:.3g}: the floor "
            f"of {dtype} is {float(floor.max()):.3g} here{more}",
            InversionWarning,
            stacklevel=callers_level(),
        )
