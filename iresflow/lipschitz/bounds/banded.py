r"""Norms of convolutions to four digits, by a banded Cholesky factorisation.

:math:`s I - A^\top A` is positive definite just when s exceeds the squared norm of A, and a
Cholesky factorisation that runs through proves it, but for rounding (Rump, Verification of
positive definiteness, BIT 46, 2006). An image row shares outputs only with the next k - 1 rows,
so the Gram matrix is block-banded with one block row for each image row; most blocks are equal.
The candidate s comes from the eigenvalues of a small matrix, and of a large one from Lanczos
iterations, which end below the squared norm.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.lanczos import LanczosProcess
from iresflow.lipschitz.bounds.base import EPS, Bound, scaled
from iresflow.lipschitz.layers.padding import Padding
from iresflow.threads import threads_for

__all__ = ["banded_bound", "banded_cost", "taps_bound", "taps_cost"]

_THREADED = 0.2
"""Share of a factorisation that one of its operations is, roughly, for `threads_for`."""

DENSE = 256
"""Dimensions up to which all eigenvalues take less time than Lanczos' many small products."""

_LANCZOS_STEPS = 80

_SETTLED = 3e-5
"""Relative growth of Lanczos' value in ten steps that tells its end."""

_MARGINS = (1e-4, 6e-4, 4e-3, 2e-2, 1e-1)
"""By how much a candidate for the squared norm exceeds Lanczos' value, tried in turn."""


@final
@dataclass(frozen=True)
class _Operator:
    """A convolution and its taps, turned so that its Gram matrix has the smaller blocks.

    Attributes:
        kernel: ``(D, C, k, l)``; the Gram matrix is on the side of the C channels.
        rows: ``(k, H', H)`` taps along the axis of the block rows.
        columns: ``(l, W', W)`` taps along the other.
    """

    kernel: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def block(self) -> int:
        """Dimension of one block."""
        return self.columns.shape[2] * self.kernel.shape[1]

    @property
    def bandwidth(self) -> int:
        """Largest distance of two block rows that are coupled."""
        reads = self.rows.amax(0)
        y, z = (reads.mT @ reads).nonzero(as_tuple=True)
        return int((y - z).abs().max()) if len(y) else 0

    @property
    def cost(self) -> float:
        """Floating-point operations of one factorisation, roughly."""
        band = self.bandwidth + 1
        return self.rows.shape[2] * float(self.block) ** 3 * band * (band + 1) / 1.4

    def turned(self) -> tuple["_Operator", ...]:
        """This operator and those of equal norm: adjoint, and rows and columns exchanged."""
        adjoint = _Operator(self.kernel.transpose(0, 1), self.rows.mT, self.columns.mT)
        return tuple(
            turned
            for one in (self, adjoint)
            for turned in (one, _Operator(one.kernel.transpose(2, 3), one.columns, one.rows))
        )


def banded_cost(
    kernel: Tensor, image_size: tuple[int, int], stride: int, padding: Padding
) -> float:
    """Floating-point operations of `banded_bound`, roughly."""
    return taps_cost(kernel, *_taps(kernel, image_size, stride, padding))


def banded_bound(
    kernel: Tensor, image_size: tuple[int, int], stride: int, padding: Padding
) -> Bound | None:
    """The norm of a convolution to about four digits: `taps_bound` of a layer of this package.

    Arguments:
        kernel: ``(D, C, k, k)``.
        image_size: Height and width of the input, in pixels.
        stride: Of the convolution.
        padding: What it reads beyond the border.
    """
    return taps_bound(kernel, *_taps(kernel, image_size, stride, padding))


def taps_cost(kernel: Tensor, rows: Tensor, columns: Tensor) -> float:
    """Floating-point operations of `taps_bound`, roughly."""
    return _cheapest(kernel.detach(), rows, columns).cost


def taps_bound(kernel: Tensor, rows: Tensor, columns: Tensor) -> Bound | None:
    """The norm of a convolution to about four digits, from above and below.

    Arguments:
        kernel: ``(D, C, k, l)``.
        rows, columns: Its taps along both axes, ``(k, H', H)`` and ``(l, W', W)`` of 0 and 1, in
            whatever pattern of stride, dilation and padding.

    Returns:
        The bound, or None where Lanczos' value was too far below the norm to start from.

    The allowance has two parts. The Gram matrix' entries are sums of products over D channels and
    (k l)^2 pairs of taps at most, so it is off by (D + (k l)^2 + 4) eps times the squared norm of
    the operator of absolute values; that norm is below the sum of the taps' Frobenius norms times
    the norms of their 0-1 matrices. And a factorisation that runs through is one of a matrix that
    is off by (m + 2) eps times the trace, for inner products of length m (Higham, Accuracy and
    Stability, theorem 10.3).
    """
    frozen, power = scaled(kernel.detach().cpu())
    if power in (0.0, math.inf):
        return Bound(power, power, "banded")
    operator = _cheapest(frozen, rows, columns)
    with threads_for(_THREADED * operator.cost):
        return _bound(operator, power)


def _bound(operator: _Operator, power: float) -> Bound | None:
    gram = _BandedGram(operator)
    dimension = operator.rows.shape[2] * operator.block
    lower = gram.largest() if dimension <= DENSE else gram.lanczos(_LANCZOS_STEPS)
    absolute = (
        operator.kernel.square().sum((0, 1)).sqrt()
        * _tap_norms(operator.rows)[:, None]
        * _tap_norms(operator.columns)[None, :]
    ).sum()
    channels, _, *sides = operator.kernel.shape
    gram_slack = 2 * (channels + math.prod(sides) ** 2 + 4) * EPS * float(absolute) ** 2
    length = (operator.bandwidth + 1) * operator.block + 2
    for margin in _MARGINS:
        square = lower * (1 + margin) + gram_slack
        if gram.is_below(square):
            slack = gram_slack + 4 * length * EPS * dimension * square
            upper = math.sqrt(square + slack) * (1 + 4 * EPS) * power
            return Bound(upper, math.sqrt(max(lower - slack, 0.0)) * power, "banded")
    return None


def _taps(
    kernel: Tensor, image_size: tuple[int, int], stride: int, padding: Padding
) -> tuple[Tensor, Tensor]:
    rows, columns = (padding.taps(n, kernel.shape[-1], stride) for n in image_size)
    return rows, columns


def _cheapest(kernel: Tensor, rows: Tensor, columns: Tensor) -> _Operator:
    return min(_Operator(kernel, rows, columns).turned(), key=lambda operator: operator.cost)


def _tap_norms(taps: Tensor) -> Tensor:
    """Norms ``(k,)`` of 0-1 matrices ``(k, n', n)``, from above."""
    return (taps.sum(1).amax(1) * taps.sum(2).amax(1)).sqrt()


@final
class _BandedGram:
    """The lower half of a Gram matrix by its different blocks.

    Arguments:
        operator: See `_Operator`.
    """

    def __init__(self, operator: _Operator) -> None:
        kernel, rows, columns = operator.kernel, operator.rows, operator.columns
        many, few, high, wide = kernel.shape
        self.height, self.block = rows.shape[2], operator.block
        self.bandwidth = operator.bandwidth
        taps = kernel.permute(2, 3, 1, 0).reshape(high * wide * few, many)
        products = (taps @ taps.mT).view(high, wide, few, high, wide, few)
        # Which pairs of taps couple two image rows, and two pixels of a row, and how often.
        pairs = torch.einsum("aoy,boz->yzab", rows, rows)
        pixels = torch.einsum("iox,jow->ijxw", columns, columns)
        width = columns.shape[2]
        coupled = products.permute(0, 3, 2, 5, 1, 4).reshape(-1, wide * wide)
        coupled = (coupled @ pixels.reshape(wide * wide, -1)).view(-1, few, few, width, width)
        blocks = coupled.permute(0, 3, 1, 4, 2).reshape(high * high, self.block**2)
        y, z = (pairs.sum((2, 3)) > 0).tril().nonzero(as_tuple=True)
        patterns, index = torch.unique(pairs[y, z].flatten(1), dim=0, return_inverse=True)
        self.blocks = (patterns @ blocks).view(-1, self.block, self.block)
        self.places = {(int(a), int(b)): int(i) for a, b, i in zip(y, z, index, strict=True)}
        self._below = [(y[index == i], z[index == i]) for i in range(len(self.blocks))]
        self._above = [
            (z[keep], y[keep])
            for i in range(len(self.blocks))
            for keep in [(index == i) & (y != z)]
        ]

    def multiply(self, x: Tensor) -> Tensor:
        """The Gram matrix times x, ``(H, block)`` to the same."""
        result = torch.zeros_like(x)
        for block, (y, z), (above_y, above_z) in zip(
            self.blocks, self._below, self._above, strict=True
        ):
            result.index_add_(0, y, x[z] @ block.mT)
            if len(above_y):
                result.index_add_(0, above_y, x[above_z] @ block)
        return result

    def largest(self) -> float:
        """The largest eigenvalue, but for rounding."""
        shape = (self.height, self.block)
        matrix = torch.zeros(*shape, *shape, dtype=torch.float64)
        for block, (y, z) in zip(self.blocks, self._below, strict=True):
            matrix[y, :, z, :] = block
        size = self.height * self.block
        return _largest(matrix.view(size, size))

    def lanczos(self, steps: int) -> float:
        """The largest eigenvalue from below, from a fixed random vector.

        It ends early where ten steps have not moved the value by a fraction of the margins.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (self.height, self.block)
        start = torch.randn(shape, generator=generator, dtype=torch.float64)
        process, value = LanczosProcess(start, steps), 0.0
        for step, vector in enumerate(process):
            process.take(self.multiply(vector))
            if step % 10 == 9:
                before, value = value, _largest(process.matrix)
                if value - before <= _SETTLED * value:
                    return value
        return _largest(process.matrix)

    def is_below(self, square: float) -> bool:
        """Whether a Cholesky factorisation of ``square * I`` less the matrix runs through."""
        factors: dict[tuple[int, int], Tensor] = {}
        identity = torch.eye(self.block, dtype=torch.float64)
        for j in range(self.height):
            rest = square * identity - self._block(j, j)
            for m in range(max(0, j - self.bandwidth), j):
                rest.addmm_(factors[j, m], factors[j, m].mT, alpha=-1)
            corner, failure = torch.linalg.cholesky_ex(rest)
            if int(failure):
                return False
            for i in range(j + 1, min(j + self.bandwidth + 1, self.height)):
                rest = -self._block(i, j)
                for m in range(max(0, i - self.bandwidth), j):
                    rest.addmm_(factors[i, m], factors[j, m].mT, alpha=-1)
                factors[i, j] = torch.linalg.solve_triangular(
                    corner.mT, rest, upper=True, left=False
                )
            for m in range(max(0, j - self.bandwidth), j):
                del factors[j, m]
        return True

    def _block(self, y: int, z: int) -> Tensor:
        place = self.places.get((y, z))
        if place is None:
            return torch.zeros(self.block, self.block, dtype=torch.float64)
        return self.blocks[place]


def _largest(matrix: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix that is positive but for rounding."""
    return max(0.0, float(torch.linalg.eigvalsh(matrix)[-1]))
