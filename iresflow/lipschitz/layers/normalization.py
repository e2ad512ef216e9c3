"""What training divides a layer's weight by: an estimate of its norm, or a certified bound."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from iresflow.lipschitz.layers.estimates import bidiagonalization, lanczos, power_iteration
from iresflow.lipschitz.layers.operator import OperatorFamily

__all__ = [
    "NORMALIZATIONS",
    "Bidiagonalization",
    "Certified",
    "Normalization",
    "PowerIteration",
    "Unlimited",
    "normalization_named",
]


class Normalization(ABC):
    """What training divides a layer's weight by."""

    @abstractmethod
    def norm(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        """The norm for a training step, a scalar that is differentiable in the weight.

        Arguments:
            family, weight: The layer.
            left: The iteration's left vector, which moves on.
        """

    @abstractmethod
    def settled(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        """The norm of a weight that stands still, for eval mode; arguments as in `norm`."""

    @abstractmethod
    def enforced(self, family: OperatorFamily, weight: Tensor, tight: float) -> float:
        """A rigorous upper bound of the norm, as close as may be to what training divides by.

        Arguments:
            family, weight: The layer.
            tight: Its tightest bound.
        """

    def from_above(self) -> "Normalization":
        """What training divides by where the norm may never exceed its limit."""
        return self


@dataclass(frozen=True)
class _Estimated(Normalization):
    """By an estimate from below."""

    def settled(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        return lanczos(family, weight, left)

    def enforced(self, family: OperatorFamily, weight: Tensor, tight: float) -> float:
        del family, weight
        return tight

    def from_above(self) -> Normalization:
        return Certified()


@final
@dataclass(frozen=True)
class PowerIteration(_Estimated):
    """Warm-started power iteration on the operator (thesis, section 4.2.1): cheap, from below.

    The optimiser grows the directions that the iteration has not found yet, so the true norm runs
    ahead of the estimate by a percent or two.

    Arguments:
        iterations: In each training step; five in the code of the i-ResNet paper.
    """

    iterations: int = 5

    def norm(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        return power_iteration(family, weight, left, self.iterations)


@final
@dataclass(frozen=True)
class Bidiagonalization(_Estimated):
    """Golub and Kahan's bidiagonalisation, eight warm-started steps: from below, and closer.

    It takes the best vector of the space in which as many power iterations take the last, and the
    true norm is a tenth as far ahead of it (``benchmarks/certify.py --only overshoot``).
    """

    def norm(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        return bidiagonalization(family, weight, left)


@final
@dataclass(frozen=True)
class Certified(Normalization):
    """The rigorous upper bound itself, in every step: what is trained is what is certified.

    Its cost is that of `symbol_norm` and `matrix_norm`: small where one side has few channels.
    """

    def norm(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        del left
        return family.smooth_bound(weight)

    def settled(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        return self.norm(family, weight.detach(), left)

    def enforced(self, family: OperatorFamily, weight: Tensor, tight: float) -> float:
        return max(tight, float(family.smooth_bound(weight.detach())))


@final
@dataclass(frozen=True)
class Unlimited(Normalization):
    """By nothing: the weight acts as it is, whatever the coefficient.

    Bounds are then those of an ordinary network, and a branch need be no contraction. It is for
    comparisons, so no name of a configuration leads to it.
    """

    def norm(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        del family, left
        return weight.new_zeros(())

    def settled(self, family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
        return self.norm(family, weight, left)

    def enforced(self, family: OperatorFamily, weight: Tensor, tight: float) -> float:
        del family, weight, tight
        return 0.0


NORMALIZATIONS: dict[str, Normalization] = {
    "bidiagonalization": Bidiagonalization(),
    "certified": Certified(),
    "power-iteration": PowerIteration(),
}
"""The normalisations by the names that configurations use."""


def normalization_named(name: str) -> Normalization:
    """One of `NORMALIZATIONS`, or a ValueError that names them all."""
    if name not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise ValueError(f"unknown normalization {name!r}; choose one of {known}")
    return NORMALIZATIONS[name]
