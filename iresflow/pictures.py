"""Images in, picture files out."""

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["image_grid", "save_grid", "save_image"]

VISIBLE = 64
"""Pixels that the sides of an image are magnified to, about: 8 x 8 can't be looked at."""


def image_grid(images: Tensor, columns: int | None = None, border: int = 1) -> Tensor:
    """A grid ``(3, H', W')`` of images ``(N, C, H, W)`` in [0, 1], about as wide as high.

    Small images are magnified by a whole number: each pixel becomes a square.

    Arguments:
        images: Of one channel or three.
        columns: Images side by side; the root of their number by default.
        border: Grey pixels around each image, before it is magnified.
    """
    count, _, height, width = images.shape
    columns = min(columns or max(1, round(count**0.5 + 0.499)), max(count, 1))
    rows = -(-count // columns)
    high, wide = height + border, width + border
    grid = torch.full((3, rows * high + border, columns * wide + border), 0.5).to(images)
    for index, image in enumerate(images.clamp(0, 1)):
        top, left = index // columns * high + border, index % columns * wide + border
        grid[:, top : top + height, left : left + width] = image
    factor = max(1, VISIBLE // max(height, width))
    return grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Writes an `image_grid` as PNG."""
    save_image(image_grid(images.detach().cpu().float(), columns), path)


def save_image(image: Tensor, path: Path) -> None:
    """Writes an image ``(C, H, W)`` in [0, 1], of one channel or three, as its suffix says."""
    from PIL import Image

    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    try:
        picture.save(path)
    except OSError as error:  # such as a full disk, which names no file
        error.add_note(f"({path} could not be written)")
        raise
