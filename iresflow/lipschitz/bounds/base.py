r"""Operator norms: what a bound is, and the bound of a matrix.

Power iteration approaches a norm from below, so it can certify nothing. The bounds of this
package lie *above* the largest singular value of a linear layer, in float64, with an explicit
allowance for the rounding of their own arithmetic:

- `matrix_norm`, here: dense and 1 x 1 layers, by the largest eigenvalue of the Gram matrix.
- `iresflow.lipschitz.bounds.symbol`: k x k convolutions of any size, by their Fourier transform.
- `iresflow.lipschitz.bounds.banded`: k x k convolutions of up to some thousand dimensions, to four
  digits, by a Cholesky factorisation.

The first two are differentiable in the weight, so that training can normalise with them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["EPS", "Bound", "LipschitzMap", "matrix_norm", "scaled"]

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


def matrix_norm(matrix: Tensor) -> tuple[Tensor, float]:
    """Upper bound of the largest singular value of a matrix ``(m, n)``, and an estimate of it.

    The bound is a float64 scalar with the gradient of :math:`|W v|` at the singular vector v of
    the largest singular value. The allowance, relative to the squared Frobenius norm F: each entry
    of the Gram matrix G is off by max(m, n) eps times the product of two columns' norms, together
    max(m, n) eps F at most; LAPACK's eigenvalues are those of a matrix that is off by a modest
    multiple of eps times the norm of G, taken here as 4 min(m, n) eps F.

    Cost: O(max(m, n) min(m, n)^2).
    """
    moving, power = scaled(matrix)
    frozen = moving.detach()
    if power in (0.0, math.inf):
        return frozen.new_tensor(power), power
    tall = frozen if frozen.shape[0] >= frozen.shape[1] else frozen.mT
    gram = tall.mT @ tall
    slack = 4 * (sum(frozen.shape) + 4) * EPS * float(gram.trace())
    if not (torch.is_grad_enabled() and matrix.requires_grad):
        square = float(torch.linalg.eigvalsh(gram)[-1])
        upper = frozen.new_tensor(math.sqrt(max(square, 0.0) + slack) * power * (1 + 4 * EPS))
        return upper, math.sqrt(max(square - slack, 0.0)) * power
    values, vectors = torch.linalg.eigh(gram)
    square, vector = float(values[-1]), vectors[:, -1]
    image = moving @ vector if tall is frozen else moving.mT @ vector
    norm = torch.linalg.vector_norm(image)
    upper = math.sqrt(max(square, 0.0) + slack) * (1 + 4 * EPS)
    return (norm - norm.detach() + upper) * power, math.sqrt(max(square - slack, 0.0)) * power
