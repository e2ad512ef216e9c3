r"""Operator norms: rigorous upper bounds, and what a bound is.

Power iteration approaches a norm from below, so it can certify nothing. The functions here bound
the largest singular value of a linear layer from *above*, in float64, with an explicit allowance
for the rounding of their own arithmetic:

- `matrix_bound`: dense and 1 x 1 layers, by the singular values of the matrix.
- `fourier_bound`: zero-padded k x k convolutions of any size. The convolution is a compression of
  the circular convolution on a grid of at least (n + k - 1) x (m + k - 1), whose singular values
  are those of one small matrix for each frequency (Sedghi et al., 2019, arXiv:1805.10408, for the
  circular case). A stride only drops rows, and keeps the bound valid.
- `gram_bound`: any linear map with a small side, to about six digits. A Cholesky factorisation of
  :math:`t I - A^\top A` that succeeds proves :math:`\|A\|^2 < t` (Rump, 2006, BIT 46).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Bound", "LipschitzMap", "fourier_bound", "gram_bound", "matrix_bound"]

_EPS = torch.finfo(torch.float64).eps


@final
@dataclass(frozen=True)
class Bound:
    """What is known of a Lipschitz constant in the Euclidean norm.

    Attributes:
        upper: Never below the constant: this alone may be called certified.
        estimate: An estimate from below (power iteration), to tell how tight `upper` is.
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


def matrix_bound(matrix: Tensor) -> float:
    """Upper bound of the largest singular value of a matrix ``(m, n)``.

    The allowance is the backward error of LAPACK's singular values, a modest multiple of
    eps times the norm, taken here as (m + n) eps times the Frobenius norm.
    """
    matrix = matrix.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        return math.inf
    largest = float(torch.linalg.matrix_norm(matrix, ord=2))
    slack = sum(matrix.shape) * _EPS * float(torch.linalg.matrix_norm(matrix))
    return largest + slack


def fourier_bound(kernel: Tensor, image_size: tuple[int, int]) -> float:
    """Upper bound of the norm of a zero-padded convolution, by the DFT of its kernel.

    Arguments:
        kernel: ``(C_out, C_in, k, l)``.
        image_size: Height and width (n, m) of the layer's input, in pixels.

    The kernel is real, so half of the frequencies suffice; the Gram matrix of each frequency is
    formed on the smaller channel side. Cost: O((n+k)(m+l) C_max C_min^2).
    """
    kernel = kernel.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(kernel).all()):
        return math.inf
    grid = tuple(n + k - 1 for n, k in zip(image_size, kernel.shape[-2:], strict=True))
    symbol = torch.fft.rfft2(kernel, s=grid).flatten(2).permute(2, 0, 1)  # (frequencies, out, in)
    if symbol.shape[1] > symbol.shape[2]:
        symbol = symbol.mH
    squares = torch.linalg.eigvalsh(symbol @ symbol.mH)[:, -1]
    # Rounding: of the DFT (log of the grid), the Gram product (its inner length) and the
    # eigenvalues (its size), each relative to the squared Frobenius norm of a frequency.
    frobenius = symbol.abs().square().sum((1, 2))
    steps = sum(symbol.shape[1:]) + 8 * math.log2(math.prod(grid) + 1) + 8
    return math.sqrt(float((squares + 4 * steps * _EPS * frobenius).max().clamp_min(0)))


def gram_bound(gram_product: Callable[[Tensor], Tensor], size: int, inner: int) -> float:
    r"""Upper bound of the norm of A from products with its Gram matrix, tight to about 1e-6.

    Arguments:
        gram_product: Maps rows ``(N, size)`` in float64 to :math:`A^\top A` (or
            :math:`A A^\top`) times each of them.
        size: The dimension of that Gram matrix.
        inner: The largest number of products summed into one of its entries.

    Cost: one materialised Gram matrix, and O(size^3 / 3) for each of a few factorisations.
    """
    identity = torch.eye(size, dtype=torch.float64)
    gram = gram_product(identity)
    if not bool(torch.isfinite(gram).all()):
        return math.inf
    gram = (gram + gram.mT) / 2
    trace = float(gram.trace())
    if trace <= 0:
        return 0.0
    # Rounding of the Gram matrix and of the factorisation, both relative to traces:
    # trace(A^T A) for the first, trace(t I - A^T A) <= size * t for the second.
    slack = 2 * (inner + 2) * _EPS * trace
    guess = _largest_eigenvalue(gram)
    margin = 1e-6
    while True:
        top = guess * (1 + margin)
        _, failed = torch.linalg.cholesky_ex(top * identity - gram)
        if not failed:
            return math.sqrt(top + slack + 2 * (size + 2) * _EPS * size * top)
        margin *= 4


def _largest_eigenvalue(gram: Tensor, steps: int = 60) -> float:
    """Rayleigh quotient of a positive semi-definite matrix after a block power iteration."""
    generator = torch.Generator().manual_seed(0)
    width = min(8, gram.shape[0])
    block = torch.randn(gram.shape[0], width, dtype=gram.dtype, generator=generator)
    for _ in range(steps):
        block, _ = torch.linalg.qr(gram @ block)
    return float(torch.linalg.eigvalsh(block.mT @ gram @ block)[-1])
