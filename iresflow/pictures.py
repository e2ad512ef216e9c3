"""Images in, picture files out."""

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["image_grid", "save_grid", "save_image"]


def image_grid(images: Tensor, columns: int | None = None, border: int = 1) -> Tensor:
    """A grid ``(C, H', W')`` of images ``(N, C, H, W)`` in [0, 1], about as wide as high.

    Arguments:
        images: Of one channel or three; the grid has three.
        columns: Images side by side; the root of their number by default.
        border: Grey pixels around each image.
    """
    count, _, height, width = images.shape
    columns = min(columns or max(1, round(count**0.5 + 0.499)), max(count, 1))
    rows = -(-count // columns)
    high, wide = height + border, width + border
    grid = torch.full((3, rows * high + border, columns * wide + border), 0.5).to(images)
    for index, image in enumerate(images.clamp(0, 1)):
        top, left = index // columns * high + border, index % columns * wide + border
        grid[:, top : top + height, left : left + width] = image
    return grid


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Writes a grid of images ``(N, C, H, W)`` in [0, 1] as PNG, small ones magnified."""
    grid = image_grid(images.detach().cpu().float(), columns)
    # Pictures of 8 x 8 pixels can't be looked at: whole-number magnification to about 32.
    factor = max(1, round(32 / images.shape[-1]))
    save_image(grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2), path)


def save_image(image: Tensor, path: Path) -> None:
    """Writes an image ``(C, H, W)`` in [0, 1], of one channel or three, as its suffix says."""
    from PIL import Image

    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()).save(path)
