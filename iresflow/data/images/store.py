"""Where decoded images are kept: in memory, or in files of a cache that are mapped into it."""

import base64
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from iresflow.data.images.decode import Decoded, Decoder

__all__ = ["InMemory", "MemoryMapped", "Store"]

_CHUNK = 1024


class Store(ABC):
    """Keeps the images that a decoder reads."""

    @abstractmethod
    def read(
        self, decoder: Decoder, root: Path, files: Sequence[str]
    ) -> tuple[np.ndarray, Decoded]:
        """The images of files, uint8 ``(N, channels, size, size)``, and what came of each file."""

    @abstractmethod
    def take(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The images ``rows`` of an array that `read` gave, in that order."""


@final
class InMemory(Store):
    """Keeps all images in memory."""

    def read(
        self, decoder: Decoder, root: Path, files: Sequence[str]
    ) -> tuple[np.ndarray, Decoded]:
        images = np.empty(decoder.shape(len(files)), dtype=np.uint8)
        return images, decoder.decode(root, files, images)

    def take(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return images[rows]


@final
@dataclass(frozen=True)
class MemoryMapped(Store):
    """Keeps images in files of a directory; the system holds in memory what is used of them.

    What was decoded once is found again, as long as the paths, sizes and times of change of all
    files are the same. Where some files can't be read, a second copy without their gaps is kept.

    Arguments:
        directory: Made if it is missing. Its files can be deleted when no process uses them.
    """

    directory: Path

    def read(
        self, decoder: Decoder, root: Path, files: Sequence[str]
    ) -> tuple[np.ndarray, Decoded]:
        key = _key(decoder, root, files)
        about = self.directory / f"{key}.json"
        if about.is_file() and self._file(key).is_file():
            return self._open(key), _decoded(json.loads(about.read_text()))
        results: list[Decoded] = []
        shape = decoder.shape(len(files))
        self._write(key, shape, lambda images: results.append(decoder.decode(root, files, images)))
        beside = about.with_suffix(f".{os.getpid()}")
        values = asdict(results[0])
        values["contents"] = base64.b64encode(b"".join(results[0].contents)).decode()
        beside.write_text(json.dumps(values))
        beside.replace(about)
        return self._open(key), results[0]

    def take(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        assert isinstance(images, np.memmap)
        source = Path(str(images.filename)).stem
        key = hashlib.sha256(source.encode() + rows.tobytes()).hexdigest()[:32]

        def fill(target: np.ndarray) -> None:
            for first in range(0, len(rows), _CHUNK):
                target[first : first + _CHUNK] = images[rows[first : first + _CHUNK]]

        if not self._file(key).is_file():
            self._write(key, (len(rows), *images.shape[1:]), fill)
        return self._open(key)

    def _file(self, key: str) -> Path:
        return self.directory / f"{key}.npy"

    def _open(self, key: str) -> np.ndarray:
        # Private, so that a write by mistake stays in this process.
        return np.load(self._file(key), mmap_mode="c")

    def _write(
        self, key: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], object]
    ) -> None:
        """A file, whole or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True)
        beside = self.directory / f"{key}.{os.getpid()}"
        try:
            images = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)
            fill(images)
            images.flush()
            beside.replace(self._file(key))
        finally:
            beside.unlink(missing_ok=True)


def _key(decoder: Decoder, root: Path, files: Sequence[str]) -> str:
    """What the images depend on, as the name of a file."""
    key = hashlib.sha256(repr((decoder, str(root.resolve()))).encode())
    for file in files:
        state = (root / file).stat()
        key.update(os.fsencode(file) + f"|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return key.hexdigest()[:32]


def _decoded(values: Mapping[str, Any]) -> Decoded:
    contents = base64.b64decode(values["contents"])
    split = [contents[first : first + 16] for first in range(0, len(contents), 16)]
    return Decoded(split, values["errors"], values["bits"])
