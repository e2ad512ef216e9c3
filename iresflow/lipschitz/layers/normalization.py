"""What training divides a layer's weight by: an estimate of its norm, or a certified bound."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from torch import Tensor

if TYPE_CHECKING:
    from iresflow.lipschitz.layers.base import NormalizedLayer

__all__ = [
    "NORMALIZATIONS",
    "SETTLING_ITERATIONS",
    "Bidiagonalization",
    "Certified",
    "Normalization",
    "PowerIteration",
]

SETTLING_ITERATIONS = 50
"""Power iterations where the vectors start cold, or where the estimate is to be reported."""


class Normalization(ABC):
    """What training divides a layer's weight by."""

    @abstractmethod
    def norm(self, layer: "NormalizedLayer") -> Tensor:
        """The norm for a training step, a scalar that is differentiable in the weight."""

    @abstractmethod
    def settled_norm(self, layer: "NormalizedLayer") -> Tensor:
        """The norm for eval mode, when training is left."""

    @abstractmethod
    def certified_norm(self, layer: "NormalizedLayer") -> float:
        """A rigorous upper bound of the norm, as close as may be to what training divided by."""


@final
@dataclass(frozen=True)
class PowerIteration(Normalization):
    """Warm-started power iteration on the operator (thesis, section 4.2.1): cheap, from below.

    The optimiser grows the directions that the iteration has not found yet, so the true norm runs
    ahead of the estimate by a percent or two.

    Arguments:
        iterations: In each training step; five in the code of the i-ResNet paper.
    """

    iterations: int = 5

    def norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.estimate(layer.weight, self.iterations)

    def settled_norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.estimate(layer.weight, SETTLING_ITERATIONS, keep=False)

    def certified_norm(self, layer: "NormalizedLayer") -> float:
        return layer.raw_bound().upper


@final
@dataclass(frozen=True)
class Bidiagonalization(Normalization):
    """Golub and Kahan's bidiagonalisation, two warm-started steps: from below, and cheaper.

    It takes the best vector of the space in which two power iterations take the last, for less
    than half of the products of five iterations, and follows the norm as closely
    (``benchmarks/certify.py --only overshoot``).
    """

    def norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.bidiagonal_estimate(layer.weight)

    def settled_norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.estimate(layer.weight, SETTLING_ITERATIONS, keep=False)

    def certified_norm(self, layer: "NormalizedLayer") -> float:
        return layer.raw_bound().upper


@final
@dataclass(frozen=True)
class Certified(Normalization):
    """The rigorous upper bound itself, in every step: what is trained is what is certified.

    Its cost is that of `symbol_norm` and `matrix_norm`: small where one side has few channels.
    """

    def norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.smooth_norm(layer.weight)

    def settled_norm(self, layer: "NormalizedLayer") -> Tensor:
        return layer.smooth_norm(layer.weight)

    def certified_norm(self, layer: "NormalizedLayer") -> float:
        return float(layer.smooth_norm(layer.weight))


NORMALIZATIONS: dict[str, Normalization] = {
    "bidiagonalization": Bidiagonalization(),
    "certified": Certified(),
    "power-iteration": PowerIteration(),
}
"""The normalisations by the names that configurations use."""
