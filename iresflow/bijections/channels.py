"""Maps of channels as a whole: of the first of them alone, and one that gathers their means."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from iresflow.bijections.base import Bijection, LogDet
from iresflow.bijections.inverse import Accuracy, Inverse
from iresflow.bijections.stretch import Stretch
from iresflow.tensors import wide_norm

__all__ = ["ChannelMeans", "FirstChannels"]

ROUNDING = 32.0
"""More than the error of a reflection, in units of eps and of the norm of what is reflected."""


@final
class FirstChannels(Bijection):
    """A map of the first channels (or entries of vectors), beside the identity on the others.

    Arguments:
        inner: The map, which keeps the shape.
        first: Channels that it acts on.
        others: Channels that stay.
    """

    def __init__(self, inner: Bijection, first: int, others: int) -> None:
        super().__init__()
        self.inner = inner
        self.first, self.others = first, others

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        z, term = self.inner(x[:, : self.first], context, log_det)
        return torch.cat([z, x[:, self.first :]], dim=1), term

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        z = self.inner.transform(x[:, : self.first], context)
        return torch.cat([z, x[:, self.first :]], dim=1)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        inverse = self.inner.invert(z[:, : self.first], context, accuracy)
        return replace(
            inverse,
            value=torch.cat([inverse.value, z[:, self.first :]], dim=1),
            lipschitz=max(1.0, inverse.lipschitz),
        )

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        z = self.inner.initialize(x[:, : self.first], context)
        return torch.cat([z, x[:, self.first :]], dim=1)

    def parts(self, dim: int) -> Iterator[tuple[str, Bijection, int]]:
        yield "inner", self.inner, dim * self.first // (self.first + self.others)

    def stretch(self, dim: int) -> Stretch:
        inner = self.inner.stretch(dim * self.first // (self.first + self.others))
        return inner.beside_identity() if self.others else inner


@final
class ChannelMeans(Bijection):
    r"""A rotation of flat images ``(B, D)`` after which the channels' means come first.

    Each channel's P pixels are reflected so that :math:`(1, \dots, 1) / \sqrt P` becomes the first
    unit vector (Householder). The first C entries of the result are the channels' sums over
    :math:`\sqrt P`, and the others follow, pixel by pixel. It is orthogonal, so it keeps distances
    and volumes.

    Arguments:
        shape: (C, H, W) of the images.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.pixels = shape, math.prod(shape[1:])

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.transform(x), x.new_zeros(x.shape[0])

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        pixels = self._reflected(x.reshape(len(x), self.shape[0], self.pixels))
        return pixels.transpose(1, 2).flatten(1)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        pixels = z.reshape(len(z), self.pixels, self.shape[0]).transpose(1, 2)
        x = self._reflected(pixels).flatten(1)
        return Inverse.closed_form(x, rounding=ROUNDING * torch.finfo(x.dtype).eps * wide_norm(z))

    def stretch(self, dim: int) -> Stretch:
        return Stretch()

    def _reflected(self, x: Tensor) -> Tensor:
        """``(B, C, P)``: x minus its part along e - u, doubled; e and u the two unit vectors."""
        count = x.shape[2]
        if count == 1:
            return x
        # v = e - u has |v|^2 = 2 (1 - s) and v . x = x_0 - s sum(x), for s = 1 / sqrt(P).
        s = 1 / math.sqrt(count)
        share = (x[:, :, :1] - s * x.sum(2, keepdim=True)) / (1 - s)
        first = x[:, :, :1] - (1 - s) * share
        return torch.cat([first, x[:, :, 1:] + s * share], dim=2)
