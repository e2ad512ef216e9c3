"""Vectors by name: the classic densities in the plane, or a table of one's own."""

from pathlib import Path

import numpy as np
import torch

from iresflow.data.base import Dataset, unknown_name
from iresflow.data.cuts import HELD_OUT, ByHash, Cut, Part
from iresflow.data.shuffles import split_in_three
from iresflow.data.tables.densities import DENSITY_CLASSES, DENSITY_NAMES, sample_density
from iresflow.data.tables.table_set import TableOptions, load_table

__all__ = ["VECTOR_NAMES", "load_vectors"]

VECTOR_NAMES = (*DENSITY_NAMES, "table")

_DENSITY_COUNT = 60_000


def load_vectors(
    name: str,
    root: str | Path | None = None,
    *,
    count: int | None = None,
    validation: Part | None = None,
    test: Part | None = None,
    seed: int = 0,
    cut: Cut | None = None,
    table: TableOptions | None = None,
) -> Dataset:
    """Loads a data set of vectors.

    Arguments:
        name: One of ``VECTOR_NAMES``: a density to draw points from (see
            :mod:`iresflow.data.tables.densities`), or ``table``.
        root: For ``table`` the file, see :func:`iresflow.data.tables.table_set.load_table`. Not
            used by the densities.
        count: Number of points to draw, for all three parts together: by default 60,000, at
            least 3. ``None`` for ``table``, which is used whole.
        validation: Count or fraction of them, as in :func:`iresflow.data.base.part_size`; by
            default 0.1.
        test: Likewise.
        seed: Of the points and of the parts.
        cut: The rule by which rows of a table are held out; ``None`` for their hashes.
        table: How a table is read.

    Returns:
        Splits with values float32 ``(N, D)``, not standardised; labels ``(N,)`` where the
        density has parts. ``columns`` are ``("x", "y")``, or the table's header.

    Raises:
        ValueError: If the name is unknown or another argument is not allowed.
        DataError: If the table can't be used, see
            :func:`iresflow.data.tables.table_set.load_table`.
    """
    if name not in VECTOR_NAMES:
        raise unknown_name(name, VECTOR_NAMES)
    if name == "table":
        if root is None or count is not None:
            raise ValueError(
                f"'table' got root={root} and count={count}; it needs the path of a file as root, "
                "and is used whole"
            )
        options = table or TableOptions()
        rule = cut or ByHash(seed)
        return load_table(Path(root), options, rule, validation=validation, test=test)
    if table is not None:
        raise ValueError(f"options of tables are not for {name!r}")
    count = _DENSITY_COUNT if count is None else count
    if count < 3:
        raise ValueError(f"count={count}; three parts need at least 3 points")
    points, numbers = sample_density(name, count, seed=seed)
    values = torch.from_numpy(points.astype(np.float32))
    labels = None if numbers is None else torch.from_numpy(numbers)
    splits = split_in_three(
        values,
        labels,
        validation=HELD_OUT if validation is None else validation,
        test=HELD_OUT if test is None else test,
        seed=seed,
    )
    classes = DENSITY_CLASSES[name]
    return Dataset(name, *splits, levels=None, classes=classes, columns=("x", "y"))
