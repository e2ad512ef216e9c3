"""Files and directories of samples, written a batch at a time."""

import csv
import zipfile
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

import numpy as np
import torch

from iresflow.commands.output import Output
from iresflow.pictures import save_image

__all__ = ["FORMATS", "Layout", "SampleFile"]


@final
@dataclass(frozen=True)
class Layout:
    """The arrays of samples.

    Arguments:
        shape: Of one sample.
        dtype: Of its entries.
        levels: Of images; ``None`` for rows.
        classes: Whether samples have class numbers.
        names: Of the columns of rows, or none.
    """

    shape: tuple[int, ...]
    dtype: type[np.generic]
    levels: int | None
    classes: bool
    names: tuple[str, ...] = ()


class SampleFile(Output):
    """A file or directory of samples.

    Arguments:
        path: Its name then.
        count: Samples that will be written.
        layout: Of them.
    """

    def __init__(self, path: Path, count: int, layout: Layout) -> None:
        super().__init__(path)
        self.count, self.layout, self.done = count, layout, 0
        self.labels: list[np.ndarray] = []
        if path.is_dir() and any(path.iterdir()):
            raise FileExistsError(f"{path} exists and is not empty: name another directory")
        self.open()

    def write(self, samples: np.ndarray, labels: np.ndarray) -> None:
        """Writes some samples, and their class numbers where they have some."""
        self.put(samples, labels)
        self.labels.append(labels)
        self.done += len(samples)

    @abstractmethod
    def open(self) -> None:
        """Makes it."""

    @abstractmethod
    def put(self, samples: np.ndarray, labels: np.ndarray) -> None:
        """Writes samples after those before."""


def _write_header(file: IO[bytes], layout: Layout, count: int) -> None:
    """The head of a ``.npy`` file, whose samples follow as they come."""
    head = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(layout.dtype)),
        "fortran_order": False,
        "shape": (count, *layout.shape),
    }
    np.lib.format.write_array_header_1_0(file, head)


@final
class _Npy(SampleFile):
    """One array."""

    def open(self) -> None:
        self._file = self.partial.open("wb")
        _write_header(self._file, self.layout, self.count)

    def put(self, samples: np.ndarray, labels: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(samples, self.layout.dtype).tobytes())

    def close(self, whole: bool) -> None:
        self._file.close()


@final
class _Npz(SampleFile):
    """``samples``, and where there are some ``labels`` and the names of the ``columns``."""

    def open(self) -> None:
        self._zip = zipfile.ZipFile(self.partial, "w")
        self._entry: IO[bytes] = self._zip.open("samples.npy", "w", force_zip64=True)
        _write_header(self._entry, self.layout, self.count)

    def put(self, samples: np.ndarray, labels: np.ndarray) -> None:
        self._entry.write(np.ascontiguousarray(samples, self.layout.dtype).tobytes())

    def close(self, whole: bool) -> None:
        with self._zip:
            self._entry.close()
            more = {"labels": np.concatenate(self.labels)} if whole and self.layout.classes else {}
            if whole and self.layout.names:
                more["columns"] = np.array(self.layout.names)
            for name, array in more.items():
                with self._zip.open(f"{name}.npy", "w") as entry:
                    np.save(entry, array)


@final
class _Csv(SampleFile):
    """One line a sample, with the names of the columns and the class at the end."""

    def open(self) -> None:
        self._file = self.partial.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        columns = self.layout.names
        if not columns and self.layout.classes:
            columns = tuple(f"x{i}" for i in range(1, self.layout.shape[0] + 1))
        if columns:
            self._writer.writerow([*columns, *(["label"] if self.layout.classes else [])])

    def put(self, samples: np.ndarray, labels: np.ndarray) -> None:
        for row, label in zip(samples, labels, strict=True):
            cells = [f"{cell:.17g}" for cell in row]
            self._writer.writerow([*cells, label] if self.layout.classes else cells)

    def close(self, whole: bool) -> None:
        self._file.close()


@final
class _Pngs(SampleFile):
    """One numbered file a sample, of black for level 0 and white for the last."""

    def open(self) -> None:
        self.partial.mkdir(parents=True, exist_ok=True)
        self._clear()
        self._digits = max(5, len(str(self.count - 1)))

    def put(self, samples: np.ndarray, labels: np.ndarray) -> None:
        white = (self.layout.levels or 256) - 1
        for index, image in enumerate(samples, self.done):
            pixels = torch.from_numpy(image.astype(np.float32) / white)
            save_image(pixels, self.partial / f"{index:0{self._digits}d}.png")

    def discard(self) -> None:
        self._clear()
        self.partial.rmdir()

    def _clear(self) -> None:
        for picture in self.partial.glob("*.png"):
            picture.unlink()

    def close(self, whole: bool) -> None:
        if whole and self.path.is_dir():
            self.path.rmdir()  # an empty one, which some systems don't replace


FORMATS: dict[str, type[SampleFile]] = {".npz": _Npz, ".npy": _Npy, ".csv": _Csv, "": _Pngs}
