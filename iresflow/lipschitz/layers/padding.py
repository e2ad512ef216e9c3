r"""What a convolution reads beyond the border of an image: zeros, the far side, or a mirror.

A padding along one axis says for each pixel of the padded image which pixel of the image it
copies. Along both axes, the convolution with taps :math:`W_{a,i}` is then
:math:`A = \sum_{a,i} P_a \otimes Q_i \otimes W_{a,i}`, where :math:`P_a` and :math:`Q_i` hold ones
where an output row or column reads an input row or column through tap a or i: `Padding.taps`.
Norm bounds need nothing else of the operator.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from iresflow.lipschitz.layers.convolution import convolve_same, same_weight_gradient

__all__ = [
    "PADDINGS",
    "Axis",
    "CircularPadding",
    "Grid",
    "Padding",
    "ReflectPadding",
    "ZeroPadding",
]


@final
@dataclass(frozen=True)
class Axis:
    """The frequencies of one axis of a twisted circular grid: (2 pi j + twist) / size.

    Attributes:
        size: Number of pixels N, and of frequencies.
        twist: What the phase grows by in N pixels, 0 or pi: with these, the frequencies come in
            pairs of opposite sign.
    """

    size: int
    twist: float = 0.0

    def frequencies(self) -> Tensor:
        """All of them, ``(N,)``, in radians a pixel."""
        turns = torch.arange(self.size, dtype=torch.float64)
        return (2 * math.pi * turns + self.twist) / self.size

    def half(self) -> Tensor:
        """One of each pair: those from 0 to pi."""
        return self.frequencies()[: (self.size + (1 if self.twist else 2)) // 2]


Grid = tuple[Axis, Axis]
"""Rows and columns."""


@dataclass(frozen=True)
class Padding(ABC):
    """How an image is extended by ``margin`` pixels on each side before a convolution.

    Kernels are odd squares of side k, and the margin is k // 2, so that stride 1 keeps the size.
    """

    mode: ClassVar[str]

    @abstractmethod
    def sources(self, size: int, margin: int) -> Tensor:
        """The pixel that each of the ``size + 2 margin`` padded ones copies; -1 for a zero."""

    @abstractmethod
    def fold(self, padded: Tensor, margin: int) -> Tensor:
        """The adjoint of `extend`: ``(N, C, H + 2 margin, W + 2 margin)`` to ``(N, C, H, W)``."""

    @abstractmethod
    def check(self, image_size: tuple[int, int], margin: int) -> None:
        """Raises a ValueError where an image is too small to be extended so far."""

    @abstractmethod
    def grids(self, image_size: tuple[int, int], kernel_size: int) -> tuple[Grid, ...]:
        """Circular grids on each of which the circular convolution's norm bounds this one's.

        The bound is the smallest of them, times `amplification`; the first grids matter most.
        """

    def amplification(self, image_size: tuple[int, int], kernel_size: int) -> float:
        """What the norm on any of the `grids` is multiplied by to bound this convolution's."""
        del image_size, kernel_size
        return 1.0

    def extend(self, x: Tensor, margin: int) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H + 2 margin, W + 2 margin)``."""
        return F.pad(x, (margin, margin, margin, margin), mode=self.mode) if margin else x

    def taps(self, size: int, kernel_size: int, stride: int) -> Tensor:
        """The matrices of the taps along one axis, ``(k, outputs, inputs)`` of 0 and 1."""
        sources = self.sources(size, kernel_size // 2).unfold(0, kernel_size, stride)
        taps = torch.zeros(kernel_size, len(sources), size, dtype=torch.float64)
        row, tap = (sources >= 0).nonzero(as_tuple=True)
        taps[tap, row, sources[row, tap]] = 1
        return taps

    def operator(
        self, weight: Tensor, stride: int, bias: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """The map of ``(N, C, H, W)`` to ``(N, D, H', W')`` by a kernel ``(D, C, k, k)``."""

        def convolve(x: Tensor) -> Tensor:
            return F.conv2d(self.extend(x, weight.shape[-1] // 2), weight, bias, stride=stride)

        return convolve

    def adjoint(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """The adjoint for stride 1, of the flipped and transposed kernel ``(C, D, k, k)``."""

        def convolve(u: Tensor) -> Tensor:
            side = weight.shape[-1]
            return self.fold(F.conv2d(u, weight, padding=side - 1), side // 2)

        return convolve

    def strided_adjoint(
        self, u: Tensor, weight: Tensor, image_size: tuple[int, int], stride: int
    ) -> Tensor:
        """The adjoint for any stride, of the kernel ``(D, C, k, k)`` itself."""
        margin = weight.shape[-1] // 2
        height, width = (n + 2 * margin for n in image_size)
        shape = (u.shape[0], weight.shape[1], height, width)
        return self.fold(conv2d_input(shape, weight, u, stride=stride), margin)

    def weight_gradient(self, x: Tensor, u: Tensor, shape: torch.Size, stride: int) -> Tensor:
        """Gradient of the sum of ``u * operator(weight, stride)(x)`` for a weight of a shape."""
        return conv2d_weight(self.extend(x, shape[-1] // 2), shape, u, stride=stride)


@final
@dataclass(frozen=True)
class ZeroPadding(Padding):
    """Zeros beyond the border."""

    mode = "constant"

    def sources(self, size: int, margin: int) -> Tensor:
        index = torch.arange(-margin, size + margin)
        return torch.where((index >= 0) & (index < size), index, -1)

    def fold(self, padded: Tensor, margin: int) -> Tensor:
        height, width = padded.shape[-2:]
        return padded[..., margin : height - margin, margin : width - margin]

    def check(self, image_size: tuple[int, int], margin: int) -> None:
        del image_size, margin  # Zeros never run out.

    def grids(self, image_size: tuple[int, int], kernel_size: int) -> tuple[Grid, ...]:
        # With N >= n + k // 2 pixels no tap wraps round from one pixel of the image to another,
        # so the convolution is a compression of the circular one, whatever the wrap-around is
        # multiplied by.
        return _twisted(*(n + kernel_size // 2 for n in image_size))

    # The convolution pads with zeros by itself, without a copy of the image.

    def operator(
        self, weight: Tensor, stride: int, bias: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        if stride == 1:
            return partial(convolve_same, weight=weight, bias=bias)
        margin = weight.shape[-1] // 2
        return partial(F.conv2d, weight=weight, bias=bias, stride=stride, padding=margin)

    def adjoint(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(convolve_same, weight=weight)

    def weight_gradient(self, x: Tensor, u: Tensor, shape: torch.Size, stride: int) -> Tensor:
        if stride == 1:
            return same_weight_gradient(x, u, shape)
        return conv2d_weight(x, shape, u, stride=stride, padding=shape[-1] // 2)


@final
@dataclass(frozen=True)
class CircularPadding(Padding):
    """The image is a torus: beyond the border lies its far side."""

    mode = "circular"

    def sources(self, size: int, margin: int) -> Tensor:
        return torch.arange(-margin, size + margin) % size

    def fold(self, padded: Tensor, margin: int) -> Tensor:
        return _fold_axis(_fold_axis(padded, margin, -2), margin, -1)

    def check(self, image_size: tuple[int, int], margin: int) -> None:
        if margin > min(image_size):
            raise ValueError(
                f"circular padding by {margin} pixels takes an image of at least as many, got "
                f"{image_size[0]} x {image_size[1]}"
            )

    def grids(self, image_size: tuple[int, int], kernel_size: int) -> tuple[Grid, ...]:
        del kernel_size
        return ((Axis(image_size[0]), Axis(image_size[1])),)


@final
@dataclass(frozen=True)
class ReflectPadding(Padding):
    """The image is mirrored at its border pixels, which are not repeated."""

    mode = "reflect"

    def sources(self, size: int, margin: int) -> Tensor:
        index = torch.arange(-margin, size + margin).abs()
        return size - 1 - (size - 1 - index).abs()

    def fold(self, padded: Tensor, margin: int) -> Tensor:
        for axis in (-2, -1):
            size = padded.shape[axis] - 2 * margin
            inner = padded.narrow(axis, margin, size).clone()
            near = padded.narrow(axis, 0, margin).flip(axis)
            inner.narrow(axis, 1, margin).add_(near)
            far = padded.narrow(axis, margin + size, margin).flip(axis)
            inner.narrow(axis, size - 1 - margin, margin).add_(far)
            padded = inner
        return padded

    def check(self, image_size: tuple[int, int], margin: int) -> None:
        if margin >= min(image_size):
            raise ValueError(
                f"reflect padding by {margin} pixels takes an image of more than as many, got "
                f"{image_size[0]} x {image_size[1]}"
            )

    def grids(self, image_size: tuple[int, int], kernel_size: int) -> tuple[Grid, ...]:
        # After the extension comes a convolution that drops the border: part of a circular one.
        return _twisted(*(n + 2 * (kernel_size // 2) for n in image_size))

    def amplification(self, image_size: tuple[int, int], kernel_size: int) -> float:
        # The extension's columns are orthogonal: its norm is the root of the most copies.
        copies = [int(torch.bincount(self.sources(n, kernel_size // 2)).max()) for n in image_size]
        return math.sqrt(copies[0] * copies[1]) * (1 + 1e-15)


PADDINGS: dict[str, Padding] = {
    "zeros": ZeroPadding(),
    "circular": CircularPadding(),
    "reflect": ReflectPadding(),
}
"""The paddings by the names that configurations use, which are PyTorch's."""


def _twisted(height: int, width: int) -> tuple[Grid, ...]:
    """All twists of a grid; the best is that whose frequencies miss the peak by most.

    For most layers, random or trained, it is one of the first two.
    """
    twists = ((math.pi, math.pi), (0.0, 0.0), (0.0, math.pi), (math.pi, 0.0))
    return tuple((Axis(height, row), Axis(width, column)) for row, column in twists)


def _fold_axis(padded: Tensor, margin: int, axis: int) -> Tensor:
    size = padded.shape[axis] - 2 * margin
    inner = padded.narrow(axis, margin, size).clone()
    inner.narrow(axis, size - margin, margin).add_(padded.narrow(axis, 0, margin))
    inner.narrow(axis, 0, margin).add_(padded.narrow(axis, margin + size, margin))
    return inner
