r"""Operator norms: rigorous upper bounds, and what a bound is.

Power iteration approaches a norm from below, so it can certify nothing. The functions here bound
the largest singular value of a linear layer from *above*, in float64, with an explicit allowance
for the rounding of their own arithmetic:

- `matrix_norm`: dense and 1 x 1 layers, by the singular values of the matrix.
- `fourier_norm`: zero-padded k x k convolutions of any size. The convolution is a compression of
  the circular convolution on a grid of at least (n + k - 1) x (m + k - 1), whose singular values
  are those of one small matrix for each frequency (Sedghi et al., 2019, arXiv:1805.10408, for the
  circular case). A stride only drops rows, and keeps the bound valid.
- `gram_norm`: any linear map with a small side, exactly but for rounding, by its Gram matrix.

The first two are differentiable in the weight, so that training can normalise with them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Bound", "LipschitzMap", "fourier_norm", "gram_norm", "matrix_norm"]

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


def matrix_norm(matrix: Tensor) -> Tensor:
    """Upper bound of the largest singular value of a matrix ``(m, n)``, a float64 scalar.

    The allowance is for the backward error of LAPACK's singular values, a modest multiple of eps
    times the norm, taken here as (m + n) eps times the Frobenius norm. The gradient is that of
    :math:`u^\\top W v` with the singular vectors u and v of the largest singular value.
    """
    matrix = matrix.to(torch.float64)
    frozen = matrix.detach()
    if not bool(torch.isfinite(frozen).all()):
        return frozen.new_tensor(math.inf)
    u, values, vh = torch.linalg.svd(frozen, full_matrices=False)
    slack = values[0] + sum(matrix.shape) * _EPS * torch.linalg.matrix_norm(frozen)
    moving = torch.einsum("o,oi,i->", u[:, 0], matrix, vh[0])
    return slack + (moving - moving.detach())


def fourier_norm(kernel: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Upper bound of the norm of a zero-padded convolution by the DFT of its kernel, in float64.

    Arguments:
        kernel: ``(C_out, C_in, k, l)``.
        image_size: Height and width (n, m) of the layer's input, in pixels.

    The kernel is real, so half of the frequencies suffice; the Gram matrix of each frequency is
    formed on the smaller channel side. Cost: O((n+k)(m+l) C_max C_min^2). The gradient is that of
    the largest singular value at the frequency where it is largest, as in `matrix_norm`.
    """
    kernel = kernel.to(torch.float64)
    frozen = kernel.detach()
    if not bool(torch.isfinite(frozen).all()):
        return frozen.new_tensor(math.inf)
    grid = tuple(n + k - 1 for n, k in zip(image_size, kernel.shape[-2:], strict=True))
    symbol = torch.fft.rfft2(frozen, s=grid).flatten(2).permute(2, 0, 1)  # (frequency, out, in)
    tall = symbol.shape[1] > symbol.shape[2]
    gram = symbol.mH @ symbol if tall else symbol @ symbol.mH
    squares = torch.linalg.eigvalsh(gram)[:, -1]
    # Rounding: of the DFT (log of the grid), the Gram product (its inner length) and the
    # eigenvalues (its size), each relative to the squared norm of all taps together, which no
    # frequency's Frobenius norm exceeds by more than their number.
    taps = math.prod(kernel.shape[-2:]) * frozen.square().sum()
    steps = sum(symbol.shape[1:]) + 8 * math.log2(math.prod(grid) + 1) + 8
    upper = (squares.max() + 4 * steps * _EPS * taps).clamp_min(0).sqrt()
    if not (torch.is_grad_enabled() and kernel.requires_grad):
        return upper
    top = squares.argmax()
    u, _, vh = torch.linalg.svd(symbol[top], full_matrices=False)
    moving = torch.einsum(
        "o,oikl,kl,i->", u[:, 0].conj(), kernel + 0j, _phases(top, grid, kernel), vh[0].conj()
    )
    return upper + (moving - moving.detach()).real


def _phases(frequency: Tensor, grid: tuple[int, ...], kernel: Tensor) -> Tensor:
    """What the DFT multiplies the taps ``(k, l)`` by, at an index into its flattened half grid."""
    columns = grid[1] // 2 + 1
    row, column = frequency // columns, frequency % columns
    y = torch.arange(kernel.shape[2], dtype=kernel.dtype, device=kernel.device)
    x = torch.arange(kernel.shape[3], dtype=kernel.dtype, device=kernel.device)
    turns = (row / grid[0] * y)[:, None] + (column / grid[1] * x)[None, :]
    return torch.polar(torch.ones_like(turns), -2 * math.pi * turns)


def gram_norm(gram_product: Callable[[Tensor], Tensor], size: int, inner: int) -> float:
    r"""Upper bound of the norm of A from products with its Gram matrix.

    Arguments:
        gram_product: Maps rows ``(N, size)`` in float64 to :math:`A^\top A` (or
            :math:`A A^\top`) times each of them.
        size: The dimension of that Gram matrix.
        inner: The largest number of products summed into one of its entries.

    Cost: one materialised Gram matrix and O(size^3).
    """
    gram = gram_product(torch.eye(size, dtype=torch.float64))
    if not bool(torch.isfinite(gram).all()):
        return math.inf
    square = float(torch.linalg.eigvalsh((gram + gram.mT) / 2)[-1])
    # Rounding of the Gram matrix' entries and of the eigenvalues, both relative to the trace.
    slack = 2 * (inner + size + 2) * _EPS * float(gram.trace())
    return math.sqrt(max(0.0, square + slack))
