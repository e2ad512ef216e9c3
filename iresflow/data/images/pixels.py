"""One image file to pixels: turned, brought to eight bits, resized and cropped."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from iresflow.data.images.walk import formats

__all__ = [
    "BITS",
    "bits_for",
    "exact_pixels",
    "largest_in_file",
    "largest_value",
    "open_upright",
    "read_image",
    "to_pixels",
]

BITS = (8, 10, 12, 14, 16)
"""Ranges that grey values of more than 8 bits are known to fill: ``0 .. 2^bits - 1``."""


def read_image(
    file: str | Path | IO[bytes], size: int, *, channels: int = 3, bits: int = 16
) -> np.ndarray:
    """Reads one image: turned as its EXIF tag says, resized and cropped.

    The shorter side is resized to ``size`` (bicubic, antialiased), and the middle of the longer
    side is kept. Transparency becomes white. Of an animation the first frame is read.

    Arguments:
        file: The file.
        size: Height and width, in pixels.
        channels: 1 (grey) or 3 (colour).
        bits: Of grey values stored in 16 or 32 bits, how many are used: the upper 8 of those are
            kept.

    Returns:
        Array uint8 of shape ``(channels, size, size)``.

    Raises:
        ValueError: If a grey value has more bits.
        Exception: Whatever Pillow raises for a file that it cannot read, mostly ``OSError``.
    """
    return to_pixels(open_upright(file, size), size, channels, bits)


def exact_pixels(
    file: str | Path | IO[bytes], shape: tuple[int, int, int], bits: int = 16
) -> np.ndarray:
    """An image ``(C, H, W)`` uint8 that has this shape already; nothing is resized or converted.

    A colour image of equal channels is a grey one.

    Raises:
        ValueError: it has another size or other channels, is transparent, or as `read_image`.
        Exception: as `read_image`.
    """
    channels, height, width = shape
    image = _eight_bit(open_upright(file, max(height, width)), bits)
    if image.size != (width, height):
        raise ValueError(f"{image.size[1]} x {image.size[0]} pixels, not {height} x {width}")
    if image.has_transparency_data:
        raise ValueError("transparent pixels have no colour")
    grey = image.mode in {"1", "L"}
    pixels = np.asarray(image.convert("L" if grey else "RGB")).reshape(height, width, -1)
    if channels == 1 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    if pixels.shape[2] != channels:
        kinds = {1: "grey", 3: "in colour"}
        raise ValueError(f"the image is {kinds[pixels.shape[2]]}, the model's {kinds[channels]}")
    return pixels.transpose(2, 0, 1)


def open_upright(file: str | Path | IO[bytes], size: int) -> Image.Image:
    """An image, decoded and turned; a JPEG at a fraction of its size that is enough for ``size``.

    Errors: as `read_image`. Never runs another program, whatever the file holds.
    """
    with Image.open(file, formats=formats()) as image:
        # Lets a JPEG of 12 megapixels be decoded at a fraction of its size; no smaller than four
        # times the result, so that the resizing still decides what it looks like.
        image.draft(None, (4 * size, 4 * size))
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("floating-point images have no agreed range of values")
    return upright


def largest_value(image: Image.Image) -> int | None:
    """The largest grey value of an image with more than 8 bits a value, or None for all others."""
    return int(np.asarray(image).max()) if image.mode.startswith("I") else None


def largest_in_file(file: str | Path | IO[bytes]) -> int | None:
    """As `largest_value`; of files with no more than 8 bits a value, only the heads are read.

    Errors: as `read_image`.
    """
    with Image.open(file, formats=formats()) as image:
        return largest_value(image)


def bits_for(largest: int) -> int:
    """The smallest of `BITS` that a grey value fits, or 16."""
    return next((bits for bits in BITS if largest < 1 << bits), BITS[-1])


def to_pixels(image: Image.Image, size: int, channels: int, bits: int) -> np.ndarray:
    """The pixels of what `open_upright` gave; arguments and errors as `read_image`."""
    upright = _eight_bit(image, bits)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    converted = upright.convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(converted, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def _eight_bit(image: Image.Image, bits: int) -> Image.Image:
    """Grey images of more bits with 8, where Pillow's own conversion would clip them to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() >= 1 << bits:
        raise ValueError(f"values from {values.min()} to {values.max()} are more than {bits} bits")
    return Image.fromarray((values >> bits - 8).astype(np.uint8))
