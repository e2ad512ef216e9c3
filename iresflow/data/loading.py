"""One entry for every data set of the package."""

from pathlib import Path

from iresflow.data.base import Dataset, unknown_name
from iresflow.data.images import IMAGE_NAMES, load_images
from iresflow.data.vectors import VECTOR_NAMES, load_vectors

__all__ = ["load_dataset"]


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    count: int | None = None,
    validation: int | float | None = None,
    test: int | float | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set of images or of vectors by its name.

    Arguments:
        name: One of ``IMAGE_NAMES`` or ``VECTOR_NAMES``.
        root: Data directory, directory of images, or table; which it is depends on the name.
        size: Only for images, see :func:`iresflow.data.images.load_images`.
        channels: Likewise.
        count: Only for vectors, see :func:`iresflow.data.vectors.load_vectors`.
        validation: Count or fraction to validate on; ``None`` for the default of the set.
        test: Count or fraction to test on; ``None`` for the default of the set.
        seed: Chooses the parts, and the points of a density.

    Raises:
        ValueError: If the name is unknown, or an argument is not allowed with it.
        DataError: If data is missing, unreadable or corrupt.
    """
    if name in IMAGE_NAMES:
        if count is not None:
            raise ValueError(f"count={count}; {name!r} holds images, allowed is None")
        return load_images(
            name, root, size=size, channels=channels, validation=validation, test=test, seed=seed
        )
    if name in VECTOR_NAMES:
        if size is not None or channels is not None:
            raise ValueError(
                f"size={size} and channels={channels}; {name!r} holds vectors, allowed is None"
            )
        return load_vectors(name, root, count=count, validation=validation, test=test, seed=seed)
    raise unknown_name(name, (*IMAGE_NAMES, *VECTOR_NAMES))
