"""Clipping, slopes that differ by channel, and max-pooling, written as affine maps and ReLU.

The methods of this package know layers of an affine map and one slope. What is written here is
equal to the module for all inputs, and costs layers and units: 2 layers for a clipping, 2 units
for one of ``PReLU``, and 3 units for each pair of values that max-pooling compares.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.relu.networks.affine import AffineMap, FunctionMap

__all__ = ["Step", "Shape", "clip", "max_pool", "slopes_by_channel"]

Shape = tuple[int, ...]

Step = AffineMap | float
"""An affine map, or the slope of an activation on the negative side."""

RELU = 0.0


def clip(shape: Shape, low: float, high: float) -> Iterator[Step]:
    """min(max(z, low), high), entry by entry; the limits may be infinite.

    With u = ReLU(z - low) it is low + u - ReLU(low + u - high).
    """
    size = math.prod(shape)
    if low > -math.inf:
        yield FunctionMap(lambda z: z - low, shape, size)
        yield RELU
        yield FunctionMap(lambda u: low + u, shape, size)
    if high < math.inf:
        yield FunctionMap(lambda z: high - z, shape, size)
        yield RELU
        yield FunctionMap(lambda u: high - u, shape, size)


def slopes_by_channel(shape: Shape, slopes: Tensor) -> Iterator[Step]:
    """ReLU(z) - a ReLU(-z) with a slope a for each channel, ``(C,)``; it may be negative."""
    channels = shape[0]
    by_channel = slopes.view(-1, 1)

    def split(z: Tensor) -> Tensor:
        z = z.unflatten(1, (channels, -1)) if len(shape) == 1 else z.flatten(2)
        return torch.stack([z, -z], 2)

    def join(parts: Tensor) -> Tensor:
        return (parts[:, :, 0] - by_channel * parts[:, :, 1]).view(-1, *shape)

    first = FunctionMap(split, shape, channels)
    yield first
    yield RELU
    yield FunctionMap(join, first.out_shape, channels)


def max_pool(shape: Shape, module: nn.MaxPool1d | nn.MaxPool2d) -> Iterator[Step]:
    """Max-pooling of ``(C, L)`` or ``(C, H, W)``, by comparing pairs: log2 of the window's size.

    With max(a, b) = ReLU(a - b) + ReLU(b) - ReLU(-b).
    """
    sides = shape[1:]
    index = _windows(sides, module)  # (places, taps)
    out_shape = (shape[0], *module(torch.zeros(1, *shape, dtype=torch.float64)).shape[2:])
    windows = FunctionMap(lambda x: x.flatten(2)[:, :, index], shape, shape[0])
    yield windows
    blocks, taps = shape[0] * len(index), index.shape[1]

    def pairs(v: Tensor) -> Tensor:
        a, b = v[..., 0::2], v[..., 1::2]
        alone = a[..., b.shape[-1] :]  # of an odd number the last one has no partner
        return torch.cat([a[..., : b.shape[-1]] - b, b, -b, alone, -alone], -1)

    def larger(u: Tensor, count: int) -> Tensor:
        half = count // 2
        more, b, minus_b, alone, minus_alone = u.split(
            [half, half, half, count % 2, count % 2], -1
        )
        return torch.cat([more + b - minus_b, alone - minus_alone], -1)

    place = windows.out_shape[:-1]
    while taps > 1:
        yield FunctionMap(pairs, (*place, taps), blocks)
        yield RELU
        half, odd = taps // 2, taps % 2
        units = 3 * half + 2 * odd
        yield FunctionMap(partial(larger, count=taps), (*place, units), blocks)
        taps = half + odd
    yield FunctionMap(lambda v: v.view(-1, *out_shape), (*place, 1), blocks)


def _windows(sides: Shape, module: nn.MaxPool1d | nn.MaxPool2d) -> Tensor:
    """The pixels that each place of max-pooling sees, ``(places, taps)``.

    What lies beyond the border is another pixel of the same window.
    """
    kernel, stride, padding, dilation = (
        _sizes(value, len(sides))
        for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    numbers = torch.arange(1, math.prod(sides) + 1, dtype=torch.float64)
    out = module(numbers.view(1, 1, *sides)).shape[2:]
    # As far to the end as the last window goes, which is beyond the padding where sizes are
    # rounded up.
    pads: list[int] = []
    for side, k, s, p, d, count in zip(sides, kernel, stride, padding, dilation, out, strict=True):
        pads = [p, max(0, (count - 1) * s + d * (k - 1) + 1 - side - p), *pads]
    image = F.pad(numbers.view(1, 1, *sides), pads)
    for axis, (k, s, d, count) in enumerate(zip(kernel, stride, dilation, out, strict=True)):
        at = torch.arange(count)[:, None] * s + torch.arange(k) * d
        image = image.index_select(2 + 2 * axis, at.flatten()).unflatten(2 + 2 * axis, (count, k))
    image = image[0, 0]
    if len(sides) == 2:
        image = image.permute(0, 2, 1, 3)
    seen = image.reshape(math.prod(out), -1).long()
    return torch.where(seen > 0, seen, seen.amax(1, keepdim=True)) - 1


def _sizes(value: int | Sequence[int], count: int) -> Shape:
    return (value,) * count if isinstance(value, int) else tuple(value)
