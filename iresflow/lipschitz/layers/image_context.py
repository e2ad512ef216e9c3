"""Shifts of the hidden layers of a branch, for each pixel, from a context that is an image."""

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.tensors import linear

__all__ = ["ImageShift", "context_channels", "resampled"]

SIDE = 3
"""Of the patches that a pixel's shift depends on, in pixels of the branch."""


def context_channels(shape: Sequence[int], size: tuple[int, int]) -> int:
    """Channels of contexts of a shape (C, H, W), resampled to images of another size.

    Raises:
        ValueError: no context can be resampled so.
    """
    shape = tuple(shape)
    if len(shape) == 3 and min(shape) > 0:
        channels, height, width = shape
        for whole, part in ((size, (height, width)), ((height, width), size)):
            factor = whole[0] // part[0]
            if factor and (part[0] * factor, part[1] * factor) == tuple(whole):
                return channels if whole == tuple(size) else channels * factor**2
    raise ValueError(
        f"a context (C, H, W) is as large as the image of {size[0]} x {size[1]} pixels that it "
        f"shifts, or a multiple or part of it by one whole number both ways; got {shape}"
    )


def resampled(context: Tensor, size: tuple[int, int]) -> Tensor:
    """A context ``(B, C, H, W)`` at another size, with all that it holds.

    A larger one is squeezed, its pixels side by side in the channels; of a smaller one, each pixel
    is repeated.
    """
    height, width = context.shape[2:]
    if height > size[0]:
        factor = height // size[0]
        return rearrange(context, "b c (h i) (w j) -> b (c i j) h w", i=factor, j=factor)
    factor = size[0] // height
    if factor == 1:
        return context
    return context.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


@final
class ImageShift(nn.Module):
    """A linear map from contexts ``(B, C, H, W)`` to shifts ``(B, outputs, h, w)``.

    Each pixel's shift is a function of the 3 x 3 pixels of the context around it.

    Arguments:
        shape: (C, H, W) of the contexts.
        size: Height and width of what is shifted.
        outputs: Channels of what is shifted.

    Raises:
        ValueError: see `context_channels`.
    """

    def __init__(self, shape: Sequence[int], size: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.size = size
        self.matrix = nn.Linear(context_channels(shape, size) * SIDE**2, outputs, bias=False)

    def forward(self, context: Tensor) -> Tensor:
        patches = F.unfold(resampled(context, self.size), SIDE, padding=SIDE // 2)
        batch, entries, _ = patches.shape
        rows = patches.transpose(1, 2).reshape(-1, entries)
        shifts = linear(rows, self.matrix.weight.to(rows.dtype))
        return same_layout(shifts.view(batch, *self.size, -1).permute(0, 3, 1, 2))
