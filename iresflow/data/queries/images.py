"""Images to be asked about: files below a directory, or one array."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iresflow.data.images.decode import bits_of_set
from iresflow.data.images.pixels import BITS, exact_pixels, largest_in_file, read_image
from iresflow.data.images.walk import find_images, formats
from iresflow.data.queries.base import Event, Queries, Query, class_numbers
from iresflow.data.reading import Reading
from iresflow.errors import DataError

__all__ = ["ArrayImages", "FileImages"]


@final
class FileImages(Queries):
    """All images below a directory, or a single file.

    Arguments:
        path: The directory, whose subdirectories of the first level are the classes where the
            model has some; or the file.
        event: What the model takes.
        reading: How its training data were read.
        label: The class of all, or ``None``.

    Raises:
        DataError: there is no image, an image has another size than the model's, or there are no
            classes where the model needs them.

    Warns:
        UserWarning: values of 16 or 32 bits are read as fewer, as training does where all of a
            set need no more.
    """

    title = "file"
    names: Sequence[str]

    def __init__(self, path: Path, event: Event, reading: Reading, label: int | None) -> None:
        self._root = path if path.is_dir() else path.parent
        self.names = find_images(path).files if path.is_dir() else [path.name]
        if not self.names:
            raise DataError(f"no image is in {path}")
        self._event, self._reading = event, reading
        self._grey = _levels_of_grey(event.levels)
        if reading.resize and event.shape[1] != event.shape[2]:
            raise DataError(f"files are resized to squares, and the model is of {event.shape}")
        if not reading.resize:
            self._require_sizes()
        self._labels = self._labels_of(label)
        self._bits = reading.bits or self._bits_of_set(path)

    def read(self, rows: range) -> Query:
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(self._decode, rows))
        good = [row for row, result in zip(rows, results, strict=True) if _read(result)]
        images = [result for result in results if _read(result)]
        errors = tuple(
            f"{self.names[row]} ({result})"
            for row, result in zip(rows, results, strict=True)
            if isinstance(result, str)
        )
        empty = np.empty((0, *self._event.shape), dtype=np.int64)
        values = torch.from_numpy(np.stack(images) if images else empty)
        return Query(good, values, None if self._labels is None else self._labels[good], errors)

    def _decode(self, row: int) -> np.ndarray | str:
        """An image of integers, or what is wrong with its file."""
        file, (channels, height, width) = self._root / self.names[row], self._event.shape
        try:
            if self._reading.resize:
                pixels = read_image(file, height, channels=channels, bits=self._bits)
            else:
                pixels = exact_pixels(file, (channels, height, width), self._bits)
        except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
            return " ".join(f"{type(error).__name__}: {error}".split())
        values = self._grey[pixels]
        if values.min() < 0:
            return (
                f"value {int(pixels[values < 0][0])} is none of the model's {self._event.levels} "
                "grey levels, of which the last is white"
            )
        return values

    def _bits_of_set(self, path: Path) -> int:
        with ThreadPoolExecutor() as pool:
            largest = list(pool.map(self._largest, self.names))
        instead = "an array (.npy) can hold the model's grey levels themselves"
        return bits_of_set(path, largest, instead) or BITS[-1]

    def _largest(self, name: str) -> int | None:
        try:
            return largest_in_file(self._root / name)
        except Exception:  # it is told when the image is read
            return None

    def _labels_of(self, label: int | None) -> Tensor | None:
        if self._event.context_dim == 0:
            return None
        if label is not None:
            return torch.full((len(self),), label)
        if self._reading.contexts:
            raise DataError("image files have no columns of contexts: give a .npz with contexts")
        if not all("/" in name for name in self.names):
            raise DataError(
                f"the model is conditional on a class, and images in {self._root} are in no "
                "directory of one: put them in one for each class, or pass --label"
            )
        names = [name.partition("/")[0] for name in self.names]
        classes, count = self._reading.classes, self._event.context_dim
        return class_numbers(names, classes, count, str(self._root))

    def _require_sizes(self) -> None:
        """Refuses images of other sizes before any is scored; their heads are read alone."""
        _, height, width = self._event.shape
        for name in self.names:
            try:
                with Image.open(self._root / name, formats=formats()) as image:
                    size = image.size
            except Exception:  # it is told when the image is read
                continue
            if size not in {(width, height), (height, width)}:
                raise DataError(
                    f"{self._root / name} has {size[1]} x {size[0]} pixels, the model's images "
                    f"{height} x {width}: --resize brings all to that size, as training on a "
                    "folder does"
                )


def _read(result: object) -> bool:
    return isinstance(result, np.ndarray)


def _levels_of_grey(levels: int | None) -> np.ndarray:
    """The model's level for each value of 8 bits, -1 for none, ``(256,)``: black 0, white last."""
    if levels is None or not 2 <= levels <= 256:
        raise DataError(f"files hold 256 grey levels, the model {levels}: give an array (.npy)")
    table = np.full(256, -1)
    table[np.round(np.arange(levels) * 255 / (levels - 1)).astype(int)] = np.arange(levels)
    return table


@final
class ArrayImages(Queries):
    """Integer images in an array, which may be mapped from a file.

    Arguments:
        path: Where it is from, for errors.
        array: ``(N, C, H, W)``, ``(N, H, W, C)``, or ``(N, H, W)`` of one channel.
        event: What the model takes.
        labels: Class numbers int64 ``(N,)`` or contexts ``(N, context_dim)``, or ``None``.

    Raises:
        DataError: another shape or type, or values out of range.
    """

    title = "row"

    def __init__(self, path: Path, array: np.ndarray, event: Event, labels: Tensor | None) -> None:
        channels, height, width = event.shape
        self._order: Sequence[int] = (0, 1, 2, 3)
        if array.shape[1:] == (height, width) and channels == 1:
            array = array[:, None]
        elif array.shape[1:] == (height, width, channels) and array.shape[1:] != event.shape:
            self._order = (0, 3, 1, 2)
        elif array.shape[1:] != event.shape:
            raise DataError(
                f"{path} holds an array of shape {array.shape}; the model takes images of shape "
                f"(N, {channels}, {height}, {width})"
            )
        if array.dtype.kind not in "ui":
            raise DataError(
                f"{path} holds {array.dtype}; integers 0 .. {(event.levels or 0) - 1} are needed"
            )
        self.names = range(len(array))
        self._array, self._labels = array, labels
        self._require_range(path, event.levels or 0)

    def read(self, rows: range) -> Query:
        part = self._array[rows.start : rows.stop].transpose(self._order)
        values = torch.from_numpy(np.ascontiguousarray(part).astype(np.int64))
        return Query(rows, values, None if self._labels is None else self._labels[list(rows)])

    def _require_range(self, path: Path, levels: int) -> None:
        for first in range(0, len(self._array), 1024):
            part = self._array[first : first + 1024]
            if int(part.min()) < 0 or int(part.max()) >= levels:
                wrong = ((part < 0) | (part >= levels)).reshape(len(part), -1).any(1)
                raise DataError(
                    f"{path}, row {first + int(wrong.argmax())}: values from {part.min()} to "
                    f"{part.max()}; the model takes 0 .. {levels - 1}"
                )
