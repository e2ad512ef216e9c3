"""Tables of numbers in files, read whole and checked cell by cell."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from iresflow.data.tables.text import column_title, line_of, read_text, require_distinct
from iresflow.errors import DataError

__all__ = ["COLUMNS", "SPLIT_WORDS", "Table", "column_names", "read_parts", "read_table"]

KINDS = (".npy", ".npz", ".csv", ".parquet")

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Words for a split, and which split each is."""

COLUMNS = "columns"
"""The array of a ``.npz`` file that names the columns of the others."""

_MIN_ROWS = 10


@final
@dataclass(frozen=True, eq=False)
class Table:
    """A table, and the split that each row is of where the file says so.

    Arguments:
        values: float64 ``(N, D)``.
        names: Of the D columns, or none.
        words: N words of `SPLIT_WORDS`, as they stand in the file, or ``None``.
    """

    values: np.ndarray
    names: tuple[str, ...]
    words: list[str] | None = None


def read_table(
    path: str | Path, *, header: bool | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a table of finite numbers; every column is one dimension.

    A ``.npy`` file holds a 2-D array of integers or floating-point numbers, and so does a ``.npz``
    file, perhaps beside ``columns``, an array of their names. A ``.csv`` file is UTF-8 text whose
    cells are separated by tabs, else by semicolons, else by commas, whichever its first line has;
    if no cell of the first line is a number, they are the names of the columns. Empty lines are
    passed over. An unnamed first column of distinct integers is the index that pandas writes, and
    is left out with a warning. A ``.parquet`` file needs pyarrow.

    Columns of integers are accepted, but a density over them can grow without bound.

    Arguments:
        path: The file; its extension decides how it is read.
        header: Whether the first line of text holds names; ``None`` for what it looks like.

    Returns:
        Array float64 ``(N, D)``, and the D names of the columns, or none.

    Raises:
        DataError: If the file is missing or unreadable, is of another type or shape, has fewer
            than 10 rows, a cell is not a finite number in single precision, with row and column,
            two columns have one name, or the first line can be names or a row. Rows and columns of
            an array are counted from 0 as in NumPy, lines and columns of text from 1.
    """
    table = read_parts(path, header=header)
    if table.words is not None:
        raise DataError(f"{path} holds the arrays of several splits; one table is needed")
    return table.values, table.names


def read_parts(
    path: str | Path,
    *,
    header: bool | None = None,
    split_column: str | None = None,
    min_rows: int = _MIN_ROWS,
) -> Table:
    """As `read_table`, with the split of each row: by a column, or by a ``.npz`` file's arrays.

    Arguments:
        path: The file.
        header: As in `read_table`.
        split_column: Name of a column of words that say each row's split, `SPLIT_WORDS`.
        min_rows: How many rows are needed.
    """
    path = Path(path)
    if not path.is_file():
        state = "is a directory" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {state}; a file of {', '.join(KINDS)} was looked for")
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise DataError(f"{path} ends in {path.suffix!r}; tables are read from {', '.join(KINDS)}")
    if split_column is not None and kind in (".npy", ".npz"):
        raise DataError(f"{path} holds numbers alone, so no column {split_column!r} of words")
    if kind == ".csv":
        table = Table(*read_text(path, header, split_column))
    elif kind == ".parquet":
        table = _read_parquet(path, split_column)
    else:
        table = _read_numpy(path)
    _check(path, table, min_rows)
    return table


def _check(path: Path, table: Table, min_rows: int) -> None:
    values, names = table.values, table.names
    rows, columns = values.shape
    if rows < min_rows or columns == 0:
        raise DataError(
            f"{path} has {rows} rows and {columns} columns; at least {min_rows} rows and 1 "
            "column are needed"
        )
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(values.astype(np.float32)))
    if len(bad):
        row, column = map(int, bad[0])
        if path.suffix.lower() == ".csv":
            where = f"line {line_of(path, row, bool(names))}, {column_title(column, names)}"
        else:
            where = f"row {row}, column {column} (from 0)"
        raise DataError(
            f"{path}, {where}: {values[row, column]} is not a finite number in single precision; "
            f"{len(bad)} of {values.size} cells are not"
        )


def _read_numpy(path: Path) -> Table:
    reason = None
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"": content}
    except (EOFError, MemoryError, OSError, OverflowError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"  # an absurd shape in a header asks for memory
    except zipfile.BadZipFile as error:
        reason = f"BadZipFile: {error}"
    if reason:
        raise DataError(f"{path} is not an array of numbers, or is truncated ({reason})")
    titles = arrays.pop(COLUMNS, None) if len(arrays) > 1 else None
    splits = "train" in arrays and arrays.keys() <= SPLIT_WORDS.keys()
    if len(arrays) != 1 and not splits:
        raise DataError(
            f"{path} holds the arrays {', '.join(arrays) or 'of nothing'}; allowed is one, or one "
            f"for each split: train, validation, test; and {COLUMNS}, the columns' names"
        )
    checked = {name: _numbers(path, array) for name, array in arrays.items()}
    widths = {array.shape[1] for array in checked.values()}
    if len(widths) > 1:
        raise DataError(f"{path} holds splits of {sorted(widths)} columns")
    words = [name for name, array in checked.items() for _ in array]
    values, names = np.concatenate(list(checked.values())), column_names(path, titles, *widths)
    return Table(values, names, words if len(checked) > 1 else None)


def column_names(path: Path, titles: np.ndarray | None, count: int) -> tuple[str, ...]:
    """The names of columns that a ``.npz`` file holds as an array of their own, or none.

    Raises:
        DataError: they are no words, or not one for each column, or two are the same.
    """
    if titles is None:
        return ()
    if titles.dtype.kind != "U" or titles.shape != (count,):
        raise DataError(
            f"{path} holds {COLUMNS} of {titles.dtype} and shape {titles.shape}; the names of the "
            f"{count} columns are needed"
        )
    names = tuple(titles.tolist())
    require_distinct(path, names)
    return names


def _numbers(path: Path, table: object) -> np.ndarray:
    if not isinstance(table, np.ndarray) or table.dtype.kind not in "fiu":
        kind = getattr(table, "dtype", type(table).__name__)
        raise DataError(f"{path} holds {kind}; integers or floating-point numbers are needed")
    if table.ndim != 2:
        raise DataError(
            f"{path} holds an array of shape {table.shape}; 2-D (rows, columns) is needed: "
            "reshape it, a single column for instance with array.reshape(-1, 1)"
        )
    return np.array(table, dtype=np.float64)


def _read_parquet(path: Path, split_column: str | None) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read: pip install pyarrow") from None
    try:
        content = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} could not be read: {error}") from None
    require_distinct(path, content.column_names)
    words = None
    if split_column is not None:
        if split_column not in content.column_names:
            raise DataError(
                f"{path} has no column {split_column!r}; it has {', '.join(content.column_names)}"
            )
        words = [str(word) for word in content.column(split_column).to_pylist()]
    # What pandas writes its index as is no column of its own.
    names = tuple(
        name
        for name in content.column_names
        if name != split_column and not name.startswith("__index_level_")
    )
    columns = []
    for name in names:
        values = content.column(name).to_numpy()
        if values.dtype.kind not in "fiu":
            raise DataError(
                f"{path}, column {name!r} holds {values.dtype}; integers or floating-point "
                "numbers are needed"
            )
        columns.append(values.astype(np.float64))
    return Table(np.stack(columns, axis=1) if columns else np.empty((0, 0)), names, words)
