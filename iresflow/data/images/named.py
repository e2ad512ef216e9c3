"""Images by name: digits shipped with scikit-learn, the official sets, a folder of one's own."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.data.base import Dataset, Split, resolve_root, unknown_name
from iresflow.data.cuts import ByHash, Cut, Part, part_size
from iresflow.data.fingerprint import Fingerprint
from iresflow.data.folder import load_folder
from iresflow.data.images.official import OFFICIAL_NAMES, load_official
from iresflow.data.images.store import MemoryMapped
from iresflow.data.shuffles import hold_out

__all__ = ["IMAGE_NAMES", "load_images"]

IMAGE_NAMES = ("digits", *OFFICIAL_NAMES, "folder")

_OFFICIAL_VALIDATION = 5000
_DIGITS_VALIDATION = 180
_DIGITS_TEST = 360
_DIGITS_TEST_SEED = 0


def load_images(
    name: str,
    root: str | Path | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    bits: int | None = None,
    validation: Part | None = None,
    test: Part | None = None,
    seed: int = 0,
    cut: Cut | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """Loads a data set of images.

    ``digits`` come with scikit-learn: 1797 of 8x8 pixels with 17 grey levels (E. Alpaydin,
    C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998). ``mnist``,
    ``fashion-mnist``, ``cifar10`` and ``cifar100`` are read in torchvision's layout below
    ``root``, or downloaded to there. ``folder``: :func:`iresflow.data.folder.load_folder`.

    The test part does not depend on ``seed``: results with different seeds are results on the
    same images.

    Arguments:
        name: One of ``IMAGE_NAMES``.
        root: Data directory, by default ``IRESFLOW_DATA`` of the environment, else ``./data``;
            for ``folder`` the directory of images, without default. Not used by ``digits``.
        size: Height and width in pixels. ``folder`` needs it, ``digits`` are always 8, and the
            official sets are resized (antialiased) if it is given.
        channels: 1 (grey) or 3 (colour): 3 by default for ``folder``. Other sets only accept
            what they have: grey in three equal channels has no density.
        bits: Only for ``folder``: of grey values stored in 16 or 32 bits, how many are used;
            ``None`` for the fewest that all images need.
        validation: Count or fraction of what is not tested on, to hold out; for ``folder`` of
            all. By default 5000 of the official sets, 180 of ``digits``, 0.1 of ``folder``.
        test: Count or fraction to test on: by default 360 of ``digits``, 0.1 of ``folder``. Of
            the official test images the first so many are kept: by default all, in order.
        seed: Chooses the images held out.
        cut: The rule by which images of a ``folder`` are held out; ``None`` for their hashes.
        cache: A directory where decoded images of a ``folder`` are kept and mapped from, where
            they are more than memory holds; ``None`` for memory.

    Returns:
        Splits with values uint8 ``(N, C, H, W)`` and, save for a folder without subfolders,
        labels ``(N,)``.

    Raises:
        ValueError: If the name is unknown or another argument is not allowed.
        DataError: If data is missing or corrupt.
    """
    if name not in IMAGE_NAMES:
        raise unknown_name(name, IMAGE_NAMES)
    if name == "folder":
        if root is None or size is None:
            raise ValueError(
                f"'folder' got root={root} and size={size}; it needs both, the directory of "
                "images and the number of pixels to make them high and wide"
            )
        return load_folder(
            root,
            size,
            channels=3 if channels is None else channels,
            bits=bits,
            validation=validation,
            test=test,
            cut=cut or ByHash(seed),
            store=None if cache is None else MemoryMapped(Path(cache)),
        )
    if (bits, cache) != (None, None):
        raise ValueError(
            f"bits={bits} and cache={cache}; {name} has 8 bits and fits in memory, allowed is None"
        )
    own = 3 if name.startswith("cifar") else 1
    if channels not in (None, own):
        raise ValueError(f"channels={channels}; {name} has {own}, allowed is {own} or None")
    if name == "digits":
        return _digits(size, validation, test, seed)
    return _official(name, resolve_root(root), size, validation, test, seed)


def _digits(size: int | None, validation: Part | None, test: Part | None, seed: int) -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    if size not in (None, 8):
        raise ValueError(f"size={size}; digits are 8x8 pixels, allowed is 8 or None")

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    # The file is ordered by writer, so its end is no fair sample; a fixed permutation's is.
    testing = part_size(_DIGITS_TEST if test is None else test, len(images), name="test")
    rest, tested = hold_out(images, labels, count=testing, seed=_DIGITS_TEST_SEED)
    train, validated = _hold_out_validation(
        rest, _DIGITS_VALIDATION if validation is None else validation, seed
    )
    classes = tuple(str(digit) for digit in bunch.target_names)
    return _built_in("digits", (train, validated, tested), 17, classes)


def _official(
    name: str,
    root: Path,
    size: int | None,
    validation: Part | None,
    test: Part | None,
    seed: int,
) -> Dataset:
    if size is not None and size < 1:
        raise ValueError(f"size={size}; allowed is 1 pixel or more, or None")
    official = load_official(name, root)
    images, labels = official.test
    if test is not None:
        kept = part_size(test, len(images), name="test")
        images, labels = images[:kept], labels[:kept]
    train, validated = _hold_out_validation(
        Split(_resized(official.train[0], size), official.train[1]),
        _OFFICIAL_VALIDATION if validation is None else validation,
        seed,
    )
    tested = Split(_resized(images, size), labels)
    return _built_in(name, (train, validated, tested), 256, official.classes)


def _built_in(
    name: str, splits: tuple[Split, Split, Split], levels: int, classes: tuple[str, ...]
) -> Dataset:
    fingerprint = Fingerprint.of_values(*((split.values, split.labels) for split in splits))
    return Dataset(name, *splits, levels=levels, classes=classes, fingerprint=fingerprint)


def _hold_out_validation(rest: Split, part: Part, seed: int) -> tuple[Split, Split]:
    count = part_size(part, len(rest), name="validation")
    return hold_out(rest.values, rest.labels, count=count, seed=seed)


def _resized(images: Tensor, size: int | None) -> Tensor:
    """Images uint8 ``(N, C, H, W)`` at ``size`` pixels high and wide."""
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
