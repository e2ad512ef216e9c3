"""Tables of numbers in ``.npy`` and ``.csv`` files, read whole and checked cell by cell."""

import csv
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iresflow.errors import DataError

__all__ = ["read_table"]

_MIN_ROWS = 10


def read_table(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads a table of finite numbers; every column is one dimension.

    A ``.npy`` file holds a 2-D array of integers or floating-point numbers. A ``.csv`` file is
    UTF-8 text whose cells are separated by tabs, else by semicolons, else by commas, whichever
    its first line has; if no cell of the first line is a number, they are the names of the
    columns. Empty lines are passed over.

    Columns of integers are accepted, but a density over them can grow without bound.

    Arguments:
        path: The file; its extension decides how it is read.

    Returns:
        Array float32 ``(N, D)``, and the D names of the columns, or none.

    Raises:
        DataError: If the file is missing or unreadable, is of another type or shape, has fewer
            than 10 rows, or a cell is not a finite number; with row and column. Rows and columns
            of an array are counted from 0 as in NumPy, lines and columns of text from 1.
    """
    path = Path(path)
    if not path.is_file():
        state = "is a directory" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {state}; a .npy or .csv file was looked for")
    kind = path.suffix.lower()
    if kind not in (".npy", ".csv"):
        raise DataError(
            f"{path} ends in {path.suffix!r}; tables are read from .npy and .csv files"
        )
    table, names = _read_npy(path) if kind == ".npy" else _read_csv(path)
    rows, columns = table.shape
    if rows < _MIN_ROWS or columns == 0:
        raise DataError(
            f"{path} has {rows} rows and {columns} columns; at least {_MIN_ROWS} rows and 1 "
            "column are needed"
        )
    with np.errstate(over="ignore"):
        single = table.astype(np.float32)
    bad = np.argwhere(~np.isfinite(single))
    if len(bad):
        row, column = map(int, bad[0])
        if kind == ".npy":
            where = f"row {row}, column {column} (from 0)"
        else:
            where = f"line {_line_of(path, row, bool(names))}, {_column(column, names)}"
        raise DataError(
            f"{path}, {where}: {table[row, column]} is not a finite number in single precision; "
            f"{len(bad)} of {table.size} cells are not"
        )
    return single, names


def _read_npy(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    reason = None
    try:
        with path.open("rb") as file:
            table = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise DataError(f"{path} is not an array of numbers, or is truncated ({reason})")
    if not isinstance(table, np.ndarray) or table.dtype.kind not in "fiu":
        kind = getattr(table, "dtype", type(table).__name__)
        raise DataError(f"{path} holds {kind}; integers or floating-point numbers are needed")
    if table.ndim != 2:
        raise DataError(
            f"{path} holds an array of shape {table.shape}; 2-D (rows, columns) is needed: "
            "reshape it, a single column for instance with array.reshape(-1, 1)"
        )
    return table, ()


def _read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    reason = None
    try:
        delimiter = _delimiter(path)
        number, first = next(_lines(path, delimiter), (0, []))
        names = _header(path, number, first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of files without data: an error below
            table = np.loadtxt(
                path,
                delimiter=delimiter,
                comments=None,
                quotechar='"',
                skiprows=number if names else 0,
                ndmin=2,
                encoding="utf-8-sig",
            )
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error)
    if reason is not None:
        # NumPy counts neither empty lines nor the header: look again for the line to name.
        raise _diagnosis(path) or DataError(f"{path} could not be read: {reason}")
    if names and table.shape[0] and table.shape[1] != len(names):
        raise _diagnosis(path) or DataError(f"{path} has {len(names)} names for {table.shape[1]}")
    return table, names


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    return next((mark for mark in "\t;" if mark in first), ",")


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number (from 1) of each line that is not empty, and its cells."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        for cells in reader:
            if cells:
                yield reader.line_num, [cell.strip() for cell in cells]


def _header(path: Path, number: int, cells: list[str]) -> tuple[str, ...]:
    """Names of the columns if no cell of the first line is a number, or nothing if all are."""
    numeric = [_is_number(cell) for cell in cells]
    if all(numeric):
        return ()
    if any(numeric):
        column = numeric.index(False)
        raise DataError(
            f"{path}, line {number}, {_column(column, ())}: {cells[column]!r} is not a number; if "
            f"this line is a header, {cells[numeric.index(True)]!r} must not be one"
        )
    bare = [cell.lstrip("#").strip() for cell in cells]  # as numpy.savetxt writes a header
    return tuple(name or f"column {i}" for i, name in enumerate(bare, 1))


def _diagnosis(path: Path) -> DataError | None:
    """What is wrong with a file of text that could not be read, if it is a cell or a row."""
    try:
        lines = _lines(path, _delimiter(path))
        number, first = next(lines, (0, []))
        names = _header(path, number, first)
        for number, cells in lines:
            if len(cells) != len(first):
                return DataError(
                    f"{path}, line {number}: {len(cells)} cells, but the first line has "
                    f"{len(first)}"
                )
            for column, cell in enumerate(cells):
                if not _is_number(cell):
                    return _not_a_number(path, number, column, cells, names)
    except DataError as error:
        return error
    except (OSError, ValueError, csv.Error):
        pass  # the caller has the reason already
    return None


def _not_a_number(
    path: Path, number: int, column: int, cells: list[str], names: tuple[str, ...]
) -> DataError:
    cell = cells[column]
    what = f"{cell!r} is not a number" if cell else "the cell is empty"
    hint = "; a decimal mark must be a point" if _is_number(cell.replace(",", ".")) else ""
    return DataError(f"{path}, line {number}, {_column(column, names)}: {what}{hint}")


def _column(column: int, names: tuple[str, ...]) -> str:
    return f"column {column + 1}" + (f" ({names[column]!r})" if names else "")


def _line_of(path: Path, row: int, header: bool) -> int:
    """Number of the line that row ``row`` (from 0, not counting a header) was read from."""
    for index, (number, _) in enumerate(_lines(path, _delimiter(path))):
        if index == row + header:
            return number
    raise AssertionError(f"row {row} was read from no line of {path}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python reads over, and NumPy does not
