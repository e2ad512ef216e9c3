"""One entry for every data set of the package."""

import warnings
from pathlib import Path
from typing import TypedDict

from iresflow.data.base import Dataset, unknown_name
from iresflow.data.cuts import Cut, Part, cut_named
from iresflow.data.images.named import IMAGE_NAMES, load_images
from iresflow.data.tables.table_set import TableOptions
from iresflow.data.tables.vectors import VECTOR_NAMES, load_vectors

__all__ = ["OWN_DATA", "load_dataset"]

OWN_DATA = ("folder", "table")
"""The names that stand for data of the user's own."""

_BUILT_IN = {"digits", *VECTOR_NAMES} - {*OWN_DATA}


class _Parts(TypedDict):
    """How samples are split, for images and for vectors."""

    validation: Part | None
    test: Part | None
    seed: int
    cut: Cut


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    size: int | None = None,
    channels: int | None = None,
    count: int | None = None,
    validation: Part | None = None,
    test: Part | None = None,
    seed: int = 0,
    order: str = "hash",
    bits: int | None = None,
    table: TableOptions | None = None,
    cache: str | Path | None = None,
) -> Dataset:
    """Loads a data set of images or of vectors by its name.

    Arguments:
        name: One of ``IMAGE_NAMES`` or ``VECTOR_NAMES``.
        root: Data directory, directory of images, or table; which it is depends on the name.
            Digits and the densities need none, and a warning says so.
        size: Only for images, see :func:`iresflow.data.images.named.load_images`.
        channels: Likewise.
        count: Only for vectors, see :func:`iresflow.data.tables.vectors.load_vectors`.
        validation: Count or fraction to validate on; ``None`` for the default of the set.
        test: Count or fraction to test on; ``None`` for the default of the set.
        seed: Chooses the parts, and the points of a density.
        order: Only for ``folder`` and ``table``: the rule by which samples are held out, ``hash``,
            ``time`` or ``shuffle``; see :mod:`iresflow.data.cuts`.
        table: Only for ``table``: how it is read.
        bits: Only for ``folder``, see :func:`iresflow.data.images.named.load_images`.
        cache: Likewise.

    Raises:
        ValueError: If the name is unknown, or an argument is not allowed with it.
        DataError: If data is missing, unreadable or corrupt.
    """
    cut = cut_named(order, seed)
    parts: _Parts = {"validation": validation, "test": test, "seed": seed, "cut": cut}
    if root is not None and name in _BUILT_IN:
        warnings.warn(
            f"{name} needs no files, so those in {root} are not read: the names of data of your "
            f"own are {' and '.join(OWN_DATA)}",
            UserWarning,
            stacklevel=2,
        )
    if name not in OWN_DATA and order != "hash":
        raise ValueError(f"order={order!r}; {name!r} has splits of its own, allowed is 'hash'")
    if name in IMAGE_NAMES:
        if count is not None or table is not None:
            raise ValueError(
                f"count={count} and table={table}; {name!r} holds images, allowed is None"
            )
        return load_images(
            name, root, size=size, channels=channels, bits=bits, cache=cache, **parts
        )
    if name in VECTOR_NAMES:
        if (size, channels, bits, cache) != (None, None, None, None):
            raise ValueError(
                f"size={size}, channels={channels}, bits={bits} and cache={cache}; {name!r} holds "
                "vectors, allowed is None"
            )
        return load_vectors(name, root, count=count, table=table, **parts)
    raise unknown_name(name, (*IMAGE_NAMES, *VECTOR_NAMES))
