"""MNIST, Fashion-MNIST and CIFAR with their official test sets, in torchvision's file layout."""

import contextlib
import http.client
import io
import socket
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iresflow.errors import DataError

if TYPE_CHECKING:
    from torchvision import datasets

__all__ = ["OFFICIAL_NAMES", "Official", "load_official"]

OFFICIAL_NAMES = ("mnist", "fashion-mnist", "cifar10", "cifar100")

_PROBE_SECONDS = 5.0
_STALL_SECONDS = 30.0


@dataclass(frozen=True, eq=False)
class Official:
    """The two official parts of a set: images uint8 ``(N, C, H, W)``, labels int64 ``(N,)``."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]


def load_official(name: str, root: Path) -> Official:
    """Reads an official set below ``root``, after a download if it is not there.

    Arguments:
        name: One of ``OFFICIAL_NAMES``.
        root: Directory with torchvision's layout, such as ``root/MNIST/raw`` or
            ``root/cifar-10-batches-py``. Nothing is written where nothing has to be fetched.

    Raises:
        DataError: If files are missing and could not be downloaded, or a file is corrupt.
    """
    if name in ("mnist", "fashion-mnist"):
        return _load_mnist(name, root)
    return _load_cifar(name, root)


def _load_mnist(name: str, root: Path) -> Official:
    from torchvision import datasets  # takes a second to import, which only these sets need

    cls = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
    raw = root / cls.__name__ / "raw"
    packed = [file for file, _ in cls.resources]
    files = [file.removesuffix(".gz") for file in packed]
    if missing := _missing(raw, files):
        urls = [f"{mirror}{packed[0]}" for mirror in cls.mirrors]
        local = all((raw / f"{file}.gz").is_file() for file in missing)
        _fetch(cls, root, raw, missing, urls=[] if local else urls)
    return Official(
        train=_read_idx_pair(raw / files[0], raw / files[1]),
        test=_read_idx_pair(raw / files[2], raw / files[3]),
        classes=tuple(title.split(" - ")[0] for title in cls.classes),  # "0 - zero" to "0"
    )


def _read_idx_pair(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    images = _read_idx(image_file)[:, None]
    labels = _read_idx(label_file)
    if len(images) != len(labels):
        raise DataError(
            f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels; "
            "one of the two is corrupt: delete both and fetch them again"
        )
    return images, labels


def _read_idx(file: Path) -> Tensor:
    from torchvision.datasets import mnist

    read = mnist.read_image_file if "idx3" in file.name else mnist.read_label_file
    try:
        return read(str(file))
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        # torchvision checks the header by assertions and the length by a reshape.
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
    raise _corrupt(file, reason)


def _load_cifar(name: str, root: Path) -> Official:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    cls = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = root / cls.base_folder
    sums = dict([*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])])
    if missing := _missing(folder, list(sums)):
        local = check_integrity(root / cls.filename, cls.tgz_md5)
        _fetch(cls, root, folder, missing, urls=[] if local else [cls.url])
    for file, md5 in sums.items():
        # The files are pickles, which run code when read: only known ones are.
        if not check_integrity(folder / file, md5):
            raise _corrupt(folder / file, "its MD5 sum is not the published one")
    parts = [cls(root, train=train) for train in (True, False)]
    train, test = ((_channels_first(part), torch.tensor(part.targets)) for part in parts)
    return Official(train=train, test=test, classes=tuple(parts[0].classes))


def _channels_first(part: "datasets.CIFAR10") -> Tensor:
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()


def _missing(folder: Path, files: list[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


def _fetch(
    cls: "type[datasets.MNIST | datasets.CIFAR10]",
    root: Path,
    folder: Path,
    missing: list[str],
    *,
    urls: list[str],
) -> None:
    """Has torchvision download or unpack ``missing``; ``urls`` empty means only to unpack."""
    reason = _unreachable(urls)
    if reason is None:
        try:
            with _quiet(), _socket_timeout(_STALL_SECONDS):
                cls(root, download=True)
        except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        missing = _missing(folder, missing)
        if not missing:
            return
    raise DataError(
        f"{folder} does not hold {cls.__name__}: missing {', '.join(missing)}. Downloading failed "
        f"({reason or 'the files are not in the archive'}). Either (1) put these files into that "
        "directory, or (2) run once on a machine with a network and copy the directory, or (3) "
        "point --data.root or the environment variable IRESFLOW_DATA at a directory that has "
        f"{folder.relative_to(root)}."
    )


def _unreachable(urls: list[str]) -> str | None:
    """Why none of ``urls`` answers, or ``None`` if one does or there is none to ask.

    torchvision tries every mirror for every file under whatever timeout sockets have, so one
    question per mirror beforehand is what makes a missing network a matter of seconds.
    """
    reason = None
    for url in urls:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
                return None
        except (OSError, http.client.HTTPException) as error:
            reason = f"{url}: {error}"
    return reason


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Lets sockets give up; torchvision has no argument for it, and Python's default is never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torchvision's progress bars off anything that is not a terminal."""
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _corrupt(file: Path, reason: str) -> DataError:
    return DataError(
        f"{file} is corrupt or truncated ({reason}); delete it and load again where a network is "
        "available, or replace it by a good copy"
    )
