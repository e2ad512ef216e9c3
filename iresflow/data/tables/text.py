"""Tables in text files, whose cells are separated by tabs, semicolons or commas."""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from iresflow.errors import DataError

__all__ = [
    "column_title",
    "line_of",
    "place_of",
    "read_text",
    "require_distinct",
    "write_rows",
]


def write_rows(path: Path, rows: np.ndarray, names: Sequence[str] = ()) -> None:
    """Writes rows float ``(N, D)`` as ``.csv``, so that `read_text` gives the same values back.

    Arguments:
        path: The file.
        rows: All digits of them are kept.
        names: Of the D columns, for the first line; none for no such line.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if names:
            writer.writerow(names)
        writer.writerows([f"{cell:.17g}" for cell in row] for row in rows)


def read_text(
    path: Path, header: bool | None, word_column: str | None
) -> tuple[np.ndarray, tuple[str, ...], list[str] | None]:
    """Reads a table of numbers in UTF-8 text, and perhaps one column of words.

    Arguments:
        path: The file.
        header: Whether its first line holds the names of the columns; ``None`` for what that line
            tells: it does if no cell of it is a number.
        word_column: Name of a column that holds words.

    Returns:
        Array float64 ``(N, D)``, the D names of its columns or none, and the N words.

    Raises:
        DataError: If the file is unreadable, a cell is not a number, with line and column, two
            columns have one name, or the first line can be names or a row.
    """
    reason = None
    try:
        delimiter = _delimiter(path)
        number, first = next(_lines(path, delimiter), (0, []))
        names = _header(path, number, first, header)
        words, columns = _words(path, delimiter, names, word_column)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of files without data: an error later
            table = np.loadtxt(
                path,
                delimiter=delimiter,
                comments=None,
                quotechar='"',
                skiprows=number if names else 0,
                usecols=columns,
                ndmin=2,
                encoding="utf-8-sig",
            )
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error)
    if reason is not None:
        # NumPy counts neither empty lines nor the header: look again for the line to name.
        raise _diagnosis(path, header) or DataError(f"{path} could not be read: {reason}")
    if columns is not None:
        names = tuple(names[column] for column in columns)
    if not len(table):
        table = np.empty((0, len(names)))
    if names and table.shape[1] != len(names):
        raise _diagnosis(path, header) or DataError(
            f"{path} has {len(names)} names for {table.shape[1]} columns"
        )
    if not names and header is None:
        _require_no_header(path, first, table)
    return *_without_index(path, first, table, names), words


def _words(
    path: Path, delimiter: str, names: tuple[str, ...], column: str | None
) -> tuple[list[str] | None, list[int] | None]:
    """The cells of a column of words, and the numbers of all other columns."""
    if column is None:
        return None, None
    if column not in names:
        raise DataError(
            f"{path} has no column {column!r}; it has {', '.join(names) or 'no names'}"
        )
    place = names.index(column)
    words = []
    for number, cells in _lines(path, delimiter):
        if len(cells) != len(names):
            raise DataError(
                f"{path}, line {number}: {len(cells)} cells, but the first line has {len(names)}"
            )
        words.append(cells[place])
    return words[1:], [i for i in range(len(names)) if i != place]


def _without_index(
    path: Path, first: list[str], table: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The table without the index that pandas writes: a first column of integers, unnamed."""
    unnamed = bool(names) and (not first[0] or first[0].startswith("Unnamed: 0"))
    if not unnamed or table.shape[1] < 2:
        return table, names
    index = table[:, 0]
    if (index != np.round(index)).any() or len(np.unique(index)) < len(index):
        return table, names
    warnings.warn(
        f"{path}: the first column has no name and counts the rows: it is left out as their "
        "index; give it a name to keep it",
        stacklevel=5,
    )
    return table[:, 1:], names[1:]


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


def _header(path: Path, number: int, cells: list[str], header: bool | None) -> tuple[str, ...]:
    """Names of the columns, where the first line holds them, as far as that line can tell."""
    numeric = [_is_number(cell) for cell in cells]
    index = bool(cells) and not cells[0]  # pandas leaves the name of its index empty
    if header is False or (header is None and all(numeric)):
        return ()
    if header is None and any(numeric) and not (index and all(numeric[1:])):
        column = numeric.index(False)
        raise DataError(
            f"{path}, line {number}, {column_title(column, ())}: {cells[column]!r} is not a "
            f"number; if this line is a header, {cells[numeric.index(True)]!r} must not be one, "
            "or say data.header: true"
        )
    bare = [cell.lstrip("#").strip() for cell in cells]  # as numpy.savetxt writes a header
    names = tuple(name or f"column {i}" for i, name in enumerate(bare, 1))
    require_distinct(path, names)
    return names


def _require_no_header(path: Path, first: list[str], table: np.ndarray) -> None:
    """Refuses a first line that may be names: increasing integers, and fractions below."""
    if not all(re.fullmatch(r"[+-]?\d+", cell) for cell in first) or len(table) < 2:
        return
    numbers = [int(cell) for cell in first]
    rising = all(a < b for a, b in zip(numbers, numbers[1:], strict=False))
    fractions = (table[1:] != np.round(table[1:])).mean(0)
    enough = 0.9 if len(first) > 1 else 1.0
    counted = len(first) > 2 and numbers == list(range(len(first)))
    if rising and (counted or bool((fractions >= enough).all())):
        raise DataError(
            f"{path}: the first line is {', '.join(first[:5])}{', ...' * (len(first) > 5)}, which "
            "may be the names of the columns or a row: say which, by data.header: true or false"
        )


def _diagnosis(path: Path, header: bool | None) -> DataError | None:
    """What is wrong with a file of text that could not be read, if it is a cell or a row."""
    try:
        lines = _lines(path, _delimiter(path))
        number, first = next(lines, (0, []))
        names = _header(path, number, first, header)
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
    return DataError(f"{path}, line {number}, {column_title(column, names)}: {what}{hint}")


def column_title(column: int, names: tuple[str, ...]) -> str:
    return f"column {column + 1}" + (f" ({names[column]!r})" if names else "")


def require_distinct(path: Path, names: Sequence[str]) -> None:
    """Refuses a name that several columns have: which of them is meant by it is not known.

    Raises:
        DataError: there is one.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        columns = " and ".join(str(i) for i, name in enumerate(names, 1) if name == twice[0])
        raise DataError(
            f"{path}: the columns {columns} are all called {twice[0]!r}: give each a name of its "
            "own"
        )


def place_of(path: Path, titles: Sequence[str], name: str) -> int:
    """The place of the column of a name, from 0.

    Raises:
        DataError: there is none, or there are several.
    """
    if titles.count(name) != 1:
        many = "several columns" if name in titles else "no column"
        raise DataError(f"{path} has {many} {name!r}; it has {', '.join(titles)}")
    return titles.index(name)


def line_of(path: Path, row: int, header: bool) -> int:
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
