r"""Random changes of training images, and what a density means that is trained on them.

An augmentation draws one of K changes for each image, of which one is to leave it as it is. What
is then modelled is the mixture :math:`q = \frac{1}{K} \sum_k T_k p` of the changed data. Its
log-likelihood is a proper one of unchanged images too, and comparable with any other: evaluate on
these. Since :math:`q(x) \ge p(x) / K` for images of integers, knowing the mixture rather than the
data costs at most :math:`\log K` nats an image.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from iresflow.streams import UNIFORM, Stream, draw

__all__ = ["Augmentation", "Crop", "Flip", "Shift", "unchanged"]


class Augmentation(ABC):
    """A random change of each image of a batch.

    Nothing is read from the device, and each image's change is a function of the stream and its
    place in the batch alone, in whatever parts the batch is computed.
    """

    @abstractmethod
    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        """Images of any type ``(B, C, H, W)``, each changed by a draw of its own."""

    def unchanged(self, images: Tensor) -> Tensor:
        """What scores are of, any leading shape and (H, W): the images themselves, unless the
        change is one of size."""
        return images

    @property
    @abstractmethod
    def cost(self) -> float:
        """Nats an image that the likelihood of unchanged images loses at most: log K."""


@final
@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors an image left to right with probability 1/2 (thesis A.1, for CIFAR)."""

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        size, device = (len(images),), images.device
        u = draw(UNIFORM, size, stream, batch=0, device=device, dtype=torch.float32)
        mirrored = u < 0.5
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)

    @property
    def cost(self) -> float:
        return math.log(2)


@final
@dataclass(frozen=True)
class Shift(Augmentation):
    """Moves an image by up to some pixels down or up and left or right (thesis A.1).

    That is a random crop of the padded image, of its own size.

    Arguments:
        pixels: Largest shift, at least 1: two in the thesis for MNIST.
        border: What comes in: black pixels, the nearest ones, or the image mirrored at its
            outermost pixels.

    Raises:
        ValueError: If an argument is not allowed.
    """

    pixels: int
    border: Literal["black", "nearest", "mirror"] = "black"

    def __post_init__(self) -> None:
        if self.pixels < 1 or self.border not in ("black", "nearest", "mirror"):
            raise ValueError(
                f"pixels={self.pixels} and border={self.border!r}; allowed are 1 or more, and "
                "'black', 'nearest' or 'mirror'"
            )

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        height, width = self._sides(images)
        choices = 2 * self.pixels + 1
        drawn = _integers(choices, (len(images), 2), stream, images.device) - self.pixels
        down, right = drawn.unbind(1)
        rows, rows_in = self._places(down, height)
        columns, columns_in = self._places(right, width)
        shifted = _window(images, rows, columns)
        if self.border != "black":
            return shifted
        inside = rows_in[:, None, :, None] & columns_in[:, None, None, :]
        return torch.where(inside, shifted, torch.zeros_like(shifted))

    def unchanged(self, images: Tensor) -> Tensor:
        """The images themselves.

        Raises:
            ValueError: If they are no larger than the shift.
        """
        self._sides(images)
        return images

    def _sides(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if self.pixels >= min(height, width):
            raise ValueError(f"images of {height} x {width} can't be shifted by {self.pixels}")
        return height, width

    def _places(self, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Where each pixel of a line comes from, ``(B, size)``, and whether that is inside."""
        places = torch.arange(size, device=shift.device) - shift[:, None]
        inside = (places >= 0) & (places < size)
        if self.border == "mirror":
            places = (size - 1) - ((size - 1) - places.abs()).abs()
        return places.clamp(0, size - 1), inside

    @property
    def cost(self) -> float:
        return 2 * math.log(2 * self.pixels + 1)


@final
@dataclass(frozen=True)
class Crop(Augmentation):
    """Keeps a random window of an image.

    The model is one of windows: its likelihood is that of images of the window's size, and says
    nothing about whole ones. Its scores are of the windows in the middle.

    Arguments:
        size: Height and width of the window, at least 1.

    Raises:
        ValueError: If the size is not allowed.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}; allowed is 1 or more")

    def __call__(self, images: Tensor, stream: Stream) -> Tensor:
        height, width = self._sides(images)
        count, device = len(images), images.device
        window = torch.arange(self.size, device=device)
        top, left = (
            _integers(side - self.size + 1, (count, 1), stream, device) for side in (height, width)
        )
        return _window(images, top + window, left + window)

    def unchanged(self, images: Tensor) -> Tensor:
        """The window in the middle of each image, a view.

        Raises:
            ValueError: If the images are smaller.
        """
        top, left = ((side - self.size) // 2 for side in self._sides(images))
        return images[..., top : top + self.size, left : left + self.size]

    def _sides(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if self.size > min(height, width):
            raise ValueError(f"images of {height} x {width} have no window of {self.size}")
        return height, width

    @property
    def cost(self) -> float:
        """Infinite: the likelihood of whole images is not modelled."""
        return math.inf


def unchanged(images: Tensor, changes: Sequence[Augmentation]) -> Tensor:
    """What scores are of where training images go through some changes, one after another."""
    for change in changes:
        images = change.unchanged(images)
    return images


def _integers(count: int, size: tuple[int, ...], stream: Stream, device: torch.device) -> Tensor:
    """Independent integers from 0 to ``count - 1``, all equally probable."""
    u = draw(UNIFORM, size, stream, batch=0, device=device, dtype=torch.float64)
    return (u * count).long()


def _window(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels of images ``(B, C, H, W)`` in rows ``(B, h)`` and columns ``(B, w)``."""
    numbers = torch.arange(len(images), device=images.device)[:, None, None]
    chosen = images.movedim(1, -1)[numbers, rows[:, :, None], columns[:, None, :]]
    return chosen.movedim(-1, 1).contiguous()
