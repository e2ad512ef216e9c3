"""A folder of the user's own images: found, decoded, cropped to one size, and split."""

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from iresflow.data.base import Dataset, split_in_three
from iresflow.errors import DataError

__all__ = ["load_folder", "read_image"]

_NAMED = 5


def load_folder(
    root: str | Path,
    size: int,
    *,
    channels: int = 3,
    validation: int | float = 0.1,
    test: int | float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Loads all images below a directory.

    Files and directories whose name starts with a dot, and files without the name of a format
    that Pillow reads, are passed over. Images that cannot be decoded are skipped with one
    warning. All images are held in memory, ``size * size * channels`` bytes each.

    The images are cut into the three parts by ``seed`` from their sorted relative paths, so
    neither the file system nor the place of the directory matters.

    Arguments:
        root: The directory. If every image is in some subdirectory, the subdirectories of the
            first level are the classes; otherwise there are no labels.
        size: Height and width to make, in pixels; see :func:`read_image`.
        channels: 1 (grey) or 3 (colour).
        validation: Count or fraction of the images, as in :func:`iresflow.data.base.part_size`.
        test: Likewise.
        seed: Chooses the images held out.

    Returns:
        Splits with values uint8 ``(N, channels, size, size)``; levels are 256.

    Raises:
        ValueError: If ``size`` or ``channels`` is not allowed, or the parts leave nothing to
            train on.
        DataError: If the directory is missing, or has fewer than three readable images.
    """
    if size < 1 or channels not in (1, 3):
        raise ValueError(
            f"size={size} and channels={channels}; allowed are a size of 1 or more, and 1 (grey) "
            "or 3 (colour) channels"
        )
    root = Path(root)
    if not root.is_dir():
        state = "is not a directory" if root.exists() else "does not exist"
        raise DataError(f"{root} {state}; a directory of images was looked for")
    files = _image_files(root)
    if not files:
        raise DataError(
            f"no image is in {root}: no file in it or its subdirectories has the name of a "
            "format that Pillow reads (.png, .jpg, .webp, .tif, .bmp, ...)"
        )
    images, files = _decode(root, files, size, channels)
    labels, classes = _classes(files)
    train, validated, tested = split_in_three(
        images, labels, validation=validation, test=test, seed=seed
    )
    return Dataset("folder", train, validated, tested, levels=256, classes=classes)


def read_image(file: str | Path, size: int, *, channels: int = 3) -> np.ndarray:
    """Reads one image: turned as its EXIF tag says, resized and cropped.

    The shorter side is resized to ``size`` (bicubic, antialiased), and the middle of the longer
    side is kept. Transparency becomes white. 16-bit grey values lose their lower 8 bits. Of an
    animation the first frame is read.

    Returns:
        Array uint8 of shape ``(channels, size, size)``.

    Raises:
        Exception: Whatever Pillow raises for a file that it cannot read, mostly ``OSError``.
    """
    with Image.open(file) as image:
        # Lets a JPEG of 12 megapixels be decoded at a fraction of its size; no smaller than four
        # times the result, so that the resizing below still decides what it looks like.
        image.draft(None, (4 * size, 4 * size))
        upright = _eight_bit(ImageOps.exif_transpose(image))
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    converted = upright.convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(converted, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits with 8, where Pillow's own conversion would clip them to white."""
    if image.mode == "F":
        raise ValueError("floating-point images have no agreed range of values")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"values from {values.min()} to {values.max()} are more than 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _image_files(root: Path) -> list[Path]:
    """Paths relative to ``root`` of the files with an image's name, sorted."""
    formats = {e for e, name in Image.registered_extensions().items() if name in Image.OPEN}
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        here = Path(os.path.realpath(folder))
        # A link to a directory that it is in itself would be followed for ever.
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and not here.is_relative_to(os.path.realpath(os.path.join(folder, name)))
        ]
        found += [
            Path(folder, name).relative_to(root)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in formats
        ]
    return sorted(found, key=Path.as_posix)


def _decode(root: Path, files: list[Path], size: int, channels: int) -> tuple[Tensor, list[Path]]:
    """The readable ones of ``files`` as one tensor, and which they are."""
    images = np.empty((len(files), channels, size, size), dtype=np.uint8)
    read = partial(_read_into, images, root, files)
    with ThreadPoolExecutor() as pool:
        jobs = pool.map(read, range(len(files)))
        bar = tqdm(jobs, "reading images", len(files), unit="image", disable=None, leave=False)
        errors = list(bar)
    good = [index for index, error in enumerate(errors) if error is None]
    bad = [f"{files[i].as_posix()} ({error})" for i, error in enumerate(errors) if error]
    if len(good) < 3:
        raise DataError(
            f"{root} has {len(good)} readable images of {len(files)} image files; three parts "
            "need at least 3" + (f". Not readable: {_some(bad)}" if bad else "")
        )
    if bad:
        warnings.warn(
            f"skipped {len(bad)} of {len(files)} image files in {root} that could not be read: "
            f"{_some(bad)}",
            stacklevel=3,
        )
        images = images[good]
    if channels == 3 and all((images[:, 0] == images[:, i]).all() for i in (1, 2)):
        warnings.warn(
            f"all images in {root} are grey; with channels=1 the density would be one of grey "
            "images, not of three equal channels",
            stacklevel=3,
        )
    return torch.from_numpy(images), [files[index] for index in good]


def _read_into(images: np.ndarray, root: Path, files: list[Path], index: int) -> str | None:
    """Reads file ``index`` into ``images[index]``; returns what is wrong with it, if anything."""
    _, channels, size, _ = images.shape
    try:
        images[index] = read_image(root / files[index], size, channels=channels)
    except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _classes(files: list[Path]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels ``(N,)`` and the name of each class, from the first parts of relative paths."""
    counts = Counter(file.parts[0] if len(file.parts) > 1 else "" for file in files)
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
    return torch.tensor([numbers[file.parts[0]] for file in files]), tuple(names)
