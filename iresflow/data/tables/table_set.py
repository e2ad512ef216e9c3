"""A table as a data set: its splits, its context columns, and what single precision would lose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
import torch

from iresflow.data.base import Dataset, Scaling, Split
from iresflow.data.cuts import Cut, Part, Rows, arrange
from iresflow.data.fingerprint import PART_NAMES, Fingerprint, row_keys
from iresflow.data.tables.files import SPLIT_WORDS, Table, read_parts
from iresflow.data.tables.text import place_of
from iresflow.errors import DataError

__all__ = ["TableOptions", "load_table"]

_ROUNDING = 1e-4
"""The largest rounding of a column to single precision, in its standard deviations (root mean
square): then it is told from the column's own noise by no model that float32 can compute."""


@final
@dataclass(frozen=True)
class TableOptions:
    """How a table is read.

    Arguments:
        header: Whether the first line of text holds the names of the columns; ``None`` for what
            it looks like.
        validation_root: A file with the rows to validate on.
        test_root: A file with the rows to test on.
        split_column: Name of a column that says each row's split: train, validation or test.
        context: Names of columns that are not modelled, but known: the model is p(others | these).
        offset: What to subtract from a column, by its name, before it becomes single precision.
        scaling: How contexts are standardised; ``None`` for the training rows' mean and deviation.
    """

    header: bool | None = None
    validation_root: str | None = None
    test_root: str | None = None
    split_column: str | None = None
    context: Sequence[str] = ()
    offset: Mapping[str, float] = field(default_factory=dict)
    scaling: Scaling | None = None


def load_table(
    path: Path,
    options: TableOptions,
    cut: Cut,
    *,
    validation: Part | None,
    test: Part | None,
) -> Dataset:
    """Loads a table. Columns without names are called by their number, from 1.

    Arguments:
        path: The file, see :func:`iresflow.data.tables.files.read_table`.
        options: How to read it.
        cut: The rule by which rows are held out for the splits that the files don't give.
        validation: Count or fraction of the rows that are cut; ``None`` for a tenth, or for the
            split that is given.
        test: Likewise.

    Returns:
        Splits with values float32 ``(N, D)``, less their offsets, and standardised contexts.

    Raises:
        ValueError: If the parts leave nothing to train on, or are asked for and given.
        DataError: If a file is missing or unreadable, files differ in their columns, a column is
            missing, a column is constant in the training part, or single precision would merge
            its values.
    """
    table, given, origin = _tables(path, options)
    keys = row_keys(table.values)
    if not cut.takes_given and given:
        raise ValueError(f"the splits of {path} are given, and can't be cut by {cut}")
    parts = arrange(keys, given, cut, validation=validation, test=test)
    titles = table.names or tuple(f"{i}" for i in range(1, table.values.shape[1] + 1))
    offset = _offset(path, titles, options.offset)
    values = table.values - offset
    contexts = [place_of(path, titles, name) for name in options.context]
    modelled = [i for i in range(len(titles)) if i not in contexts]
    if not modelled or len(set(contexts)) < len(contexts):
        raise DataError(f"{path}: no column is left to model, or a context column is named twice")
    _require_no_offset(path, offset[contexts], options.context)
    # Contexts are standardised in double precision, which rounds none of them away.
    _require_precision(path, values[:, modelled], [titles[i] for i in modelled])
    _require_spread(path, values[parts.train], titles)
    scaling = options.scaling or Scaling.of(values[parts.train][:, contexts])

    def take(rows: Rows) -> Split:
        single = torch.from_numpy(values[rows][:, modelled].astype(np.float32))
        known = values[rows][:, contexts] if contexts else None
        return Split(single, contexts=None if known is None else scaling(known), known=known)

    rest = [part for part in PART_NAMES if part not in given]
    told = [origin, f"{' and '.join(rest[-2:])} cut by {cut}" if rest else ""]
    return Dataset(
        "table",
        take(parts.train),
        take(parts.validation),
        take(parts.test),
        levels=None,
        classes=(),
        columns=tuple(titles[i] for i in modelled) if table.names else (),
        offset=tuple(offset[modelled].tolist()) if offset[modelled].any() else (),
        contexts=tuple(titles[i] for i in contexts),
        scaling=scaling if contexts else None,
        fingerprint=Fingerprint.of_samples(keys, (), parts),
        origin=", ".join(text for text in told if text),
    )


def _tables(path: Path, options: TableOptions) -> tuple[Table, dict[str, Rows], str]:
    """All rows, those of each split that is given, and a word on where these are from."""
    main = read_parts(path, header=options.header, split_column=options.split_column)
    own = {"validation": options.validation_root, "test": options.test_root}
    files = {part: file for part, file in own.items() if file is not None}
    if main.words is not None:
        if files:
            raise DataError(f"{path} says the split of each row: other files can't say it too")
        given = _given(path, main.words)
        source = options.split_column or "the file's arrays"
        return main, given, f"{', '.join(given)} from {source}"
    if not files:
        return main, {}, ""
    values, given, count = [main.values], {"train": np.arange(len(main.values))}, len(main.values)
    for part, file in files.items():
        other = read_parts(file, header=options.header, min_rows=1)
        if other.names != main.names or other.values.shape[1] != main.values.shape[1]:
            raise DataError(f"{file} has other columns than {path}, or in another order")
        values.append(other.values)
        given[part] = np.arange(count, count + len(other.values))
        count += len(other.values)
    origin = ", ".join(f"{part} from {file}" for part, file in files.items())
    return Table(np.concatenate(values), main.names), given, origin


def _given(path: Path, words: Sequence[str]) -> dict[str, Rows]:
    parts = [SPLIT_WORDS.get(word.strip().lower()) for word in words]
    if None in parts:
        row = parts.index(None)
        raise DataError(
            f"{path}, row {row + 1}: {words[row]!r} is no split; allowed are "
            f"{', '.join(SPLIT_WORDS)}"
        )
    if "train" not in parts:
        raise DataError(f"{path} has no row to train on")
    numbers = np.array([PART_NAMES.index(part) for part in parts if part is not None])
    rows = {part: np.flatnonzero(numbers == i) for i, part in enumerate(PART_NAMES)}
    return {part: found for part, found in rows.items() if len(found)}


def _offset(path: Path, titles: Sequence[str], offset: Mapping[str, float]) -> np.ndarray:
    """What to subtract from each column, float64 ``(D,)``."""
    shift = np.zeros(len(titles))
    for name, amount in offset.items():
        shift[place_of(path, titles, name)] = amount
    return shift


def _require_no_offset(path: Path, offset: np.ndarray, contexts: Sequence[str]) -> None:
    """Refuses offsets of contexts: a table that is scored later would be read without them."""
    for column in np.flatnonzero(offset).tolist():
        raise DataError(
            f"{path}, column {contexts[column]!r} is a context, which double precision "
            "standardises: leave it out of data.offset"
        )


def _require_precision(path: Path, values: np.ndarray, titles: Sequence[str]) -> None:
    """Refuses columns of which single precision would tell the values apart no more."""
    for column, title in enumerate(titles):
        exact = values[:, column]
        single = exact.astype(np.float32)
        rounding = np.sqrt(np.mean((single - exact) ** 2))
        if rounding <= _ROUNDING * exact.std():
            continue
        before, after = len(np.unique(exact)), len(np.unique(single))
        if after == before:
            continue
        middle = round(float(np.median(exact)), -int(np.floor(np.log10(exact.std()))))
        raise DataError(
            f"{path}, column {title!r}: single precision would merge its {before} distinct values "
            f"into {after}. Subtract a constant before: data.offset: {{{title!r}: {middle!r}}}"
        )


def _require_spread(path: Path, train: np.ndarray, titles: Sequence[str]) -> None:
    low, high = train.min(0), train.max(0)
    for column in np.flatnonzero(low == high).tolist():
        raise DataError(
            f"{path}, column {titles[column]!r}: all {len(train)} training rows are "
            f"{low[column]:g}; no density exists on a constant column: leave it out"
        )
