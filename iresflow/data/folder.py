"""A folder of the user's own images: found, decoded to one size, and split."""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iresflow.data.base import Dataset, Split
from iresflow.data.cuts import ByHash, Cut, Part, Parts, Rows, arrange
from iresflow.data.fingerprint import PART_NAMES, Fingerprint
from iresflow.data.images.decode import Decoder
from iresflow.data.images.store import InMemory, Store
from iresflow.data.images.walk import find_images
from iresflow.errors import DataError, few

__all__ = ["load_folder"]

_DIRECTORIES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Names of directories that are splits, and which split each is."""


def load_folder(
    root: str | Path,
    size: int,
    *,
    channels: int = 3,
    bits: int | None = None,
    validation: Part | None = None,
    test: Part | None = None,
    cut: Cut | None = None,
    store: Store | None = None,
) -> Dataset:
    """Loads all images below a directory.

    Which files these are: see :func:`iresflow.data.images.walk.find_images`. Images that cannot be
    decoded are skipped with one warning.

    A directory ``train`` beside one of ``val``, ``valid``, ``validation`` and ``test``, or alone,
    makes these directories the splits; a split that has none is cut from the training images.
    Otherwise all three are cut, by default by a hash of each path below the directory: an image
    stays in its split when others are added.

    Arguments:
        root: The directory. If every image is in some subdirectory (of a split's directory, where
            there are such), the subdirectories of the first level are the classes; otherwise
            there are no labels.
        size: Height and width to make, in pixels; see
            :func:`iresflow.data.images.pixels.read_image`.
        channels: 1 (grey) or 3 (colour).
        bits: See :class:`iresflow.data.images.decode.Decoder`.
        validation: Count or fraction of the images, as in :func:`iresflow.data.cuts.part_size`;
            ``None`` for a tenth, or for the split that the directories give.
        test: Likewise.
        cut: The rule by which images are held out; ``None`` for their hashes.
        store: Where the images are kept, ``size * size * channels`` bytes each; ``None`` for the
            memory.

    Returns:
        Splits with values uint8 ``(N, channels, size, size)``; levels are 256.

    Raises:
        ValueError: If an argument is not allowed, or the parts leave nothing to train on.
        DataError: If the directory is missing, or a split would have no readable image.
    """
    root, cut, store = Path(root), cut or ByHash(), store or InMemory()
    decoder = Decoder(size, channels, bits)
    files = _found(root)
    if len(files) < 3:
        raise DataError(f"{root} has {len(files)} image files; three splits need at least 3")
    directories = _split_directories(root, files) if cut.takes_given else {}
    files = [file for file in files if not directories or _directory(file) in directories]
    parts = _cut(files, directories, cut, validation, test)
    # Decoded in the order of the splits, so that each is a view of one array.
    order = np.concatenate([parts.train, parts.validation, parts.test])
    files = [files[row] for row in order]
    images, decoded = store.read(decoder, root, files)
    good = np.array([row for row, error in enumerate(decoded.errors) if error is None], int)
    _tell_unreadable(root, files, decoded.errors)
    files, contents = [files[row] for row in good], [decoded.contents[row] for row in good]
    if len(good) < len(order):
        parts = _cut(files, directories, cut, validation, test)
        order = np.concatenate([parts.train, parts.validation, parts.test])
        images = store.take(images, good[order])
        files, contents = [files[row] for row in order], [contents[row] for row in order]
    reading = "" if decoded.bits is None else f"images of {decoded.bits} bits"
    return _dataset(images, files, contents, parts, directories, cut, reading)


def _dataset(
    images: np.ndarray,
    files: Sequence[str],
    contents: Sequence[bytes],
    parts: Parts,
    directories: Mapping[str, str],
    cut: Cut,
    reading: str,
) -> Dataset:
    """The data set of images that lie in the order of its parts."""
    sizes = [len(parts.train), len(parts.validation), len(parts.test)]
    ends = np.cumsum([0, *sizes])
    spans = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    values = torch.from_numpy(images)
    inside = [file.partition("/")[2] if directories else file for file in files]
    labels, classes = _classes(inside)
    train, validation, test = (
        Split(values[s], None if labels is None else labels[s]) for s in spans
    )
    if labels is not None and directories:
        _tell_untrained(labels[spans[0]], classes)
    names = [_name(file) for file in files]
    rows = Parts(*(np.arange(len(files))[span] for span in spans))
    fingerprint = Fingerprint.of_samples(contents, names, rows, reading)
    for part in ("validation", "test"):
        if shared := fingerprint.shared("train", part):
            warnings.warn(
                f"{len(shared)} images of the {part} split are also trained on, under another "
                f"name: {few(shared)}",
                stacklevel=4,
            )
    return Dataset(
        "folder",
        train,
        validation,
        test,
        levels=256,
        classes=classes,
        fingerprint=fingerprint,
        origin=_origin(directories, cut),
    )


def _found(root: Path) -> list[str]:
    """The image files, relative to the directory and sorted."""
    if not root.is_dir():
        state = "is not a directory" if root.exists() else "does not exist"
        raise DataError(f"{root} {state}; a directory of images was looked for")
    found = find_images(root)
    if found.passed_over:
        warnings.warn(
            f"passed over {len(found.passed_over)} in {root}: {few(found.passed_over)}",
            stacklevel=3,
        )
    if not found.files:
        raise DataError(
            f"no image is in {root}: no file in it or its subdirectories has the name of a "
            "format that Pillow reads (.png, .jpg, .webp, .tif, .bmp, ...)"
        )
    return found.files


def _split_directories(root: Path, files: Sequence[str]) -> dict[str, str]:
    """Which directories of the first level are splits, and which split each is, if any are."""
    counts = Counter(_directory(file) for file in files)
    found = {name: _DIRECTORIES[name.lower()] for name in counts if name.lower() in _DIRECTORIES}
    others = [name for name in counts if name not in found]
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        same = ", ".join(sorted(name for name, part in found.items() if part in twice))
        raise DataError(f"{root} has {same}, which are the same split: keep one of them")
    if "train" not in found.values() or (others and len(found) == 1):
        if found and not others:
            raise DataError(
                f"{root} has {', '.join(sorted(found))} and nothing else, so no images to train "
                "on: name their directory train"
            )
        return {}
    if others:
        left = sum(counts[name] for name in others)
        places = sorted(f"{name}/" if name else "no subdirectory" for name in others)
        warnings.warn(
            f"{', '.join(sorted(found))} in {root} are the splits: {left} images in "
            f"{few(places)} are not used",
            stacklevel=3,
        )
    return found


def _cut(
    files: Sequence[str],
    directories: Mapping[str, str],
    cut: Cut,
    validation: Part | None,
    test: Part | None,
) -> Parts:
    """The samples of each part; errors name the parts that would be empty."""
    given: dict[str, Rows] = {}
    for part in PART_NAMES if directories else ():
        rows = [row for row, file in enumerate(files) if directories[_directory(file)] == part]
        if rows:
            given[part] = np.array(rows, dtype=np.int64)
        elif part in directories.values():
            raise DataError(f"no image in the directory of the {part} split can be read")
    keys = [os.fsencode(_name(file)) for file in files]
    return arrange(keys, given, cut, validation=validation, test=test)


def _directory(file: str) -> str:
    """The directory of the first level that a file is in, empty for none."""
    return file.partition("/")[0] if "/" in file else ""


def _name(file: str) -> str:
    """The path as it is on every system: some write accents as characters of their own."""
    return unicodedata.normalize("NFC", file)


def _origin(directories: Mapping[str, str], cut: Cut) -> str:
    """How the splits were made, for a reader."""
    if not directories:
        return f"split by {cut}"
    names = {part: name for name, part in directories.items()}
    told = [f"{part} from {names[part]}/" for part in PART_NAMES if part in names]
    missing = [part for part in PART_NAMES if part not in names]
    return ", ".join(told + [f"{part} cut from train by {cut}" for part in missing])


def _tell_unreadable(root: Path, files: Sequence[str], errors: Sequence[str | None]) -> None:
    bad = sorted(
        f"{file} ({error})" for file, error in zip(files, errors, strict=True) if error is not None
    )
    good = len(files) - len(bad)
    if good < 3:
        raise DataError(
            f"{root} has {good} readable images of {len(files)} image files; three splits need "
            "at least 3" + (f". Not readable: {few(bad)}" if bad else "")
        )
    if bad:
        warnings.warn(
            f"skipped {len(bad)} of {len(files)} image files in {root} that could not be read: "
            f"{few(bad)}",
            stacklevel=3,
        )


def _classes(files: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels ``(N,)`` and the name of each class, from the first parts of relative paths."""
    counts = Counter(_directory(file) for file in files)
    loose = counts.pop("", 0)
    if loose and counts:
        warnings.warn(
            f"{loose} images are in no subfolder and {len(files) - loose} in {len(counts)}: no "
            "labels are made",
            stacklevel=3,
        )
    if loose:
        return None, ()
    names = sorted(counts)
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[_directory(file)] for file in files]), tuple(names)


def _tell_untrained(labels: Tensor, classes: Sequence[str]) -> None:
    """Warns of classes without an image to train on, by the labels of those that are."""
    missing = [name for i, name in enumerate(classes) if not bool((labels == i).any())]
    if missing:
        warnings.warn(
            f"no image of {few(missing)} is in the train directory: nothing is learnt of these "
            "classes, which are in the other splits",
            stacklevel=5,
        )
