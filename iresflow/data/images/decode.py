"""Many image files to one array: in parallel, with one range of values for the whole set."""

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from tqdm import tqdm

from iresflow.data.images.pixels import BITS, bits_for, largest_value, open_upright, to_pixels

__all__ = ["Decoded", "Decoder", "bits_of_set"]

_BLOCK = 2048

_DARK = 31
"""The largest value of a set of images that are nearly black, of 255."""


@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """What came of a list of files.

    Attributes:
        contents: A hash of each file, 16 bytes; zeros where it could not be opened.
        errors: What is wrong with each file, or ``None``.
        bits: How many bits grey values of more than 8 bits were read with; ``None`` where no file
            has such.
    """

    contents: list[bytes]
    errors: list[str | None]
    bits: int | None


@final
@dataclass(frozen=True)
class Decoder:
    """Reads image files at one size.

    Arguments:
        size: Height and width, in pixels.
        channels: 1 (grey) or 3 (colour).
        bits: Of grey values stored in 16 or 32 bits, how many are used: one of `BITS`, or
            ``None`` for the fewest that all of the set need.

    Raises:
        ValueError: If an argument is not allowed.
    """

    size: int
    channels: int
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels not in (1, 3):
            raise ValueError(
                f"size={self.size} and channels={self.channels}; allowed are a size of 1 or more, "
                "and 1 (grey) or 3 (colour) channels"
            )
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"bits={self.bits}; allowed are {', '.join(map(str, BITS))}, or None")

    def shape(self, count: int) -> tuple[int, int, int, int]:
        """The shape of so many images."""
        return count, self.channels, self.size, self.size

    def decode(self, root: Path, files: Sequence[str], images: np.ndarray) -> Decoded:
        """Reads files into an array uint8 ``(N, channels, size, size)``, row by row.

        Arguments:
            root: What the paths are relative to.
            files: N paths.
            images: Is filled; the rows of files that can't be read are left as they are.

        Warns:
            UserWarning: If values of 16 or 32 bits were read as fewer, all images are grey and
                shall be in colour, or all are nearly black.
        """
        bits = self.bits or BITS[-1]
        results = _in_parallel(lambda row: self._read(root / files[row], images, row, bits), files)
        deep = [row for row, result in enumerate(results) if result.largest is not None]
        if deep and self.bits is None:
            largest = [result.largest for result in results]
            bits = bits_of_set(root, largest, "data.bits changes that") or bits
            for row in deep if bits < BITS[-1] else ():
                results[row] = self._read(root / files[row], images, row, bits)
        errors = [result.error for result in results]
        good = [row for row, error in enumerate(errors) if error is None]
        if good:
            self._check(root, images, good)
        return Decoded([r.content for r in results], errors, bits if deep else None)

    def _read(self, file: Path, images: np.ndarray, row: int, bits: int) -> "_Result":
        content, opened = bytes(16), io.BytesIO()
        try:
            data = file.read_bytes()
            content = hashlib.blake2b(data, digest_size=16).digest()
            opened = io.BytesIO(data)
            image = open_upright(opened, self.size)
            largest = largest_value(image)
            images[row] = to_pixels(image, self.size, self.channels, bits)
        except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
            told = f"{type(error).__name__}: {error}".replace(repr(opened), file.name)
            return _Result(content, None, " ".join(told.split()))
        return _Result(content, largest, None)

    def _check(self, root: Path, images: np.ndarray, good: list[int]) -> None:
        """Warns of sets whose values are hardly those of pictures."""
        if self.channels == 3 and all(
            (images[row, 0] == images[row, i]).all() for row in good for i in (1, 2)
        ):
            warnings.warn(
                f"all images in {root} are grey; with channels=1 the density would be one of grey "
                "images, not of three equal channels",
                stacklevel=5,
            )
        largest = max(int(images[row].max()) for row in good)
        if largest <= _DARK:
            warnings.warn(
                f"all images in {root} are nearly black: no value of a pixel is above {largest} "
                "of 255. Colour images of 16 bits keep their upper 8 bits: if theirs use fewer, "
                "scale them up",
                stacklevel=5,
            )


def bits_of_set(where: Path, largest: Sequence[int | None], instead: str) -> int | None:
    """How many bits the grey values of a set of images use: one of `BITS`, or None for no such.

    Arguments:
        where: The images are, for the warning.
        largest: Of each, as :func:`iresflow.data.images.pixels.largest_value` says.
        instead: What a person can do about it.

    Warns:
        UserWarning: they are fewer than the files hold.
    """
    deep = [value for value in largest if value is not None]
    if not deep:
        return None
    bits = bits_for(max(deep))
    if bits < BITS[-1]:
        warnings.warn(
            f"{len(deep)} images in {where} hold 16 or 32 bits a value and use no more than "
            f"{bits}: they are read as images of {bits} bits; {instead}",
            stacklevel=5,
        )
    return bits


@final
@dataclass(frozen=True)
class _Result:
    content: bytes
    largest: int | None
    error: str | None


def _in_parallel(read: Callable[[int], _Result], files: Sequence[str]) -> list[_Result]:
    results: list[_Result] = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(
            desc="reading images", total=len(files), unit="image", disable=None, leave=False
        ) as bar,
    ):
        # Block by block: what waits in a pool takes more memory than a small image.
        for first in range(0, len(files), _BLOCK):
            for result in pool.map(read, range(first, min(first + _BLOCK, len(files)))):
                results.append(result)
                bar.update()
    return results
