"""Vectors by name: the classic densities in the plane, or a table of one's own."""

from pathlib import Path

import numpy as np
import torch

from iresflow.data.base import Dataset, Split, split_in_three, unknown_name
from iresflow.data.densities import DENSITY_CLASSES, DENSITY_NAMES, sample_density
from iresflow.data.tables import read_table
from iresflow.errors import DataError

__all__ = ["VECTOR_NAMES", "load_vectors"]

VECTOR_NAMES = (*DENSITY_NAMES, "table")

_DENSITY_COUNT = 60_000
_HELD_OUT = 0.1


def load_vectors(
    name: str,
    root: str | Path | None = None,
    *,
    count: int | None = None,
    validation: int | float | None = None,
    test: int | float | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set of vectors.

    Arguments:
        name: One of ``VECTOR_NAMES``: a density to draw points from (see
            :mod:`iresflow.data.densities`), or ``table``.
        root: For ``table`` the ``.npy`` or ``.csv`` file, see
            :func:`iresflow.data.tables.read_table`. Not used by the densities.
        count: Number of points to draw, for all three parts together: by default 60,000, at
            least 3. ``None`` for ``table``, which is used whole.
        validation: Count or fraction of them, as in :func:`iresflow.data.base.part_size`; by
            default 0.1.
        test: Likewise.
        seed: Of the points and of the parts.

    Returns:
        Splits with values float32 ``(N, D)``, not standardized; labels ``(N,)`` where the
        density has parts. ``columns`` are ``("x", "y")``, or the table's header.

    Raises:
        ValueError: If the name is unknown or another argument is not allowed.
        DataError: If the table is missing or unreadable, or has a column that is constant in
            the training part: no density exists then.
    """
    if name not in VECTOR_NAMES:
        raise unknown_name(name, VECTOR_NAMES)
    validation = _HELD_OUT if validation is None else validation
    test = _HELD_OUT if test is None else test
    if name == "table":
        if root is None or count is not None:
            raise ValueError(
                f"'table' got root={root} and count={count}; it needs the path of a .npy or .csv "
                "file as root, and is used whole"
            )
        return _table(Path(root), validation, test, seed)
    count = _DENSITY_COUNT if count is None else count
    if count < 3:
        raise ValueError(f"count={count}; three parts need at least 3 points")
    points, numbers = sample_density(name, count, seed=seed)
    values = torch.from_numpy(points.astype(np.float32))
    labels = None if numbers is None else torch.from_numpy(numbers)
    splits = split_in_three(values, labels, validation=validation, test=test, seed=seed)
    classes = DENSITY_CLASSES[name]
    return Dataset(name, *splits, levels=None, classes=classes, columns=("x", "y"))


def _table(path: Path, validation: int | float, test: int | float, seed: int) -> Dataset:
    table, names = read_table(path)
    values = torch.from_numpy(table)
    splits = split_in_three(values, None, validation=validation, test=test, seed=seed)
    _check_spread(path, splits[0], names)
    return Dataset("table", *splits, levels=None, classes=(), columns=names)


def _check_spread(path: Path, train: Split, names: tuple[str, ...]) -> None:
    low, high = train.values.amin(0), train.values.amax(0)
    for column in (low == high).nonzero().flatten().tolist():
        title = f" ({names[column]!r})" if names else ""
        raise DataError(
            f"{path}, column {column + 1} of {len(low)}{title}: all {len(train)} training rows "
            f"are {low[column].item():g} in single precision; no density exists on a constant "
            "column: leave it out, or subtract its mean if it does vary"
        )
