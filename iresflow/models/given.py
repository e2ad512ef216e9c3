"""What of an image is known where the rest of it is to be modelled: contexts of conditional flows.

A flow with one models p(image | what is known of it): colour from grey, detail from a small image,
what a hole has hidden. The contexts are images of their own, see
`iresflow.lipschitz.layers.image_context`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["GIVEN", "Given", "Grey", "Small", "Surroundings", "given_named"]


@dataclass(frozen=True)
class Given(ABC):
    """What of integer images is known.

    Arguments:
        levels: Grey levels of the images.
    """

    levels: int

    @abstractmethod
    def shape(self, image: Sequence[int]) -> tuple[int, int, int]:
        """The shape (C, H, W) of the contexts of images of a shape.

        Raises:
            ValueError: nothing can be known so of such images.
        """

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Contexts ``(B, C, H, W)`` of integer images ``(B, C, H, W)``, in -0.5 .. 0.5."""

    @abstractmethod
    def picture(self, images: Tensor) -> Tensor:
        """What is known, as images in [0, 1] of the size and channels of the integer images."""

    def _centred(self, images: Tensor) -> Tensor:
        return self._unit(images) - 0.5

    def _unit(self, images: Tensor) -> Tensor:
        return images.to(torch.get_default_dtype()) / (self.levels - 1)


@final
@dataclass(frozen=True)
class Grey(Given):
    """The luma of colour images, ``0.299 R + 0.587 G + 0.114 B`` (ITU-R BT.601)."""

    def shape(self, image: Sequence[int]) -> tuple[int, int, int]:
        if image[0] != 3:
            raise ValueError(f"grey is given of images of 3 colours, got {image[0]} channels")
        return (1, image[1], image[2])

    def __call__(self, images: Tensor) -> Tensor:
        return self._luma(images) - 0.5

    def picture(self, images: Tensor) -> Tensor:
        return self._luma(images).expand(-1, 3, -1, -1)

    def _luma(self, images: Tensor) -> Tensor:
        unit = self._unit(images)
        weights = unit.new_tensor([0.299, 0.587, 0.114])
        return (unit * weights[:, None, None]).sum(1, keepdim=True)


@final
@dataclass(frozen=True)
class Small(Given):
    """The image at half its size, each pixel the mean of 2 x 2."""

    def shape(self, image: Sequence[int]) -> tuple[int, int, int]:
        if image[1] % 2 or image[2] % 2:
            raise ValueError(f"half of {image[1]} x {image[2]} pixels is no whole number")
        return (image[0], image[1] // 2, image[2] // 2)

    def __call__(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(self._centred(images), 2)

    def picture(self, images: Tensor) -> Tensor:
        half = F.avg_pool2d(self._unit(images), 2)
        return half.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@final
@dataclass(frozen=True)
class Surroundings(Given):
    """All but a hole in the middle, of half the height and width; a last channel is 0.5 in it."""

    def shape(self, image: Sequence[int]) -> tuple[int, int, int]:
        if min(image[1:]) < 2:
            raise ValueError(f"there is no room for a hole in {image[1]} x {image[2]} pixels")
        return (image[0] + 1, image[1], image[2])

    def __call__(self, images: Tensor) -> Tensor:
        hole = self._hole(images)
        known = torch.where(hole, 0.0, self._centred(images))
        return torch.cat([known, hole.to(known.dtype).expand(len(images), 1, -1, -1) - 0.5], 1)

    def picture(self, images: Tensor) -> Tensor:
        return torch.where(self._hole(images), 0.5, self._unit(images))

    def _hole(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        hole = torch.zeros(height, width, dtype=torch.bool, device=images.device)
        top, left = height // 4, width // 4
        hole[top : top + height // 2, left : left + width // 2] = True
        return hole


GIVEN: dict[str, type[Given]] = {"grey": Grey, "small": Small, "surroundings": Surroundings}
"""What may be given, by the names that configurations use."""


def given_named(name: str) -> type[Given]:
    """One of `GIVEN`, or a ValueError that names them all."""
    if name not in GIVEN:
        raise ValueError(f"unknown given {name!r}; choose one of {', '.join(GIVEN)}")
    return GIVEN[name]
