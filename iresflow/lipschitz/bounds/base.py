r"""Operator norms: what a bound is.

Power iteration approaches a norm from below, so it can certify nothing. The bounds of this
package lie *above* the largest singular value of a linear layer, in float64, with an explicit
allowance for the rounding of their own arithmetic:

- `iresflow.lipschitz.bounds.matrix`: dense and 1 x 1 layers, by the largest
  eigenvalue of the Gram matrix.
- `iresflow.lipschitz.bounds.symbol`: k x k convolutions of any size, by their Fourier transform.
- `iresflow.lipschitz.bounds.banded`: k x k convolutions of up to some thousand dimensions, to four
  digits, by a Cholesky factorisation.
- `iresflow.lipschitz.bounds.localized`: convolutions on large images that are mirrored or
  continued, from their norms on smaller ones.

The first two are differentiable in the weight, so that training can normalise with them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["EPS", "Bound", "LipschitzMap", "scaled"]

EPS = torch.finfo(torch.float64).eps
"""Twice the largest relative error of one rounding in float64."""


@final
@dataclass(frozen=True)
class Bound:
    """What is known of a Lipschitz constant.

    Attributes:
        upper: Never below the constant: this alone may be called certified.
        estimate: An estimate from below, to tell how tight `upper` is.
        method: How `upper` was found, one word.
    """

    upper: float
    estimate: float
    method: str

    def __post_init__(self) -> None:
        # A comparison that NaN fails: NaN weights have no bound.
        if not self.upper >= 0:
            object.__setattr__(self, "upper", math.inf)

    def then(self, other: "Bound") -> "Bound":
        """The bound of a composition: Lipschitz constants multiply (thesis, eq. 4.6)."""
        methods = dict.fromkeys(
            m for m in (*self.method.split("+"), *other.method.split("+")) if m
        )
        # One unit in the last place pays for the rounding of the product.
        upper = math.nextafter(self.upper * other.upper, math.inf)
        return Bound(upper, self.estimate * other.estimate, "+".join(methods))


class LipschitzMap(ABC):
    """A network that knows an upper bound of its own Lipschitz constant."""

    @abstractmethod
    def bound(self) -> Bound:
        """The certified bound of the map as it is now, in the Euclidean norm."""


def scaled(weight: Tensor) -> tuple[Tensor, float]:
    """A weight in float64 over a power of two, its largest entry in [1/2, 1), and that power.

    So no square over- or underflows, and what entries below 1e-300 of the largest lose is nothing
    beside the allowances. The power is 0 for a weight of zeros, infinite where an entry is.
    """
    weight = weight.to(torch.float64)
    largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
    if not math.isfinite(largest):
        return weight, math.inf
    if largest == 0:
        return weight, 0.0
    power = 2.0 ** max(math.frexp(largest)[1], -1000)
    return weight / power, power
