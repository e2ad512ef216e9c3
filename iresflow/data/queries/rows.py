"""Rows of tables to be asked about: the model's columns, by their names."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from iresflow.data.queries.base import Event, Queries, Query, class_numbers
from iresflow.data.reading import Reading
from iresflow.data.tables.text import place_of
from iresflow.errors import DataError, few

__all__ = ["TableRows"]

LABEL = "label"
"""The column of class numbers or names, for models that are conditional on a class."""

LOOK = 65536
"""Cells that are looked at together, for memory that does not grow with the table."""


@final
class TableRows(Queries):
    """Rows of an array of numbers, which may be mapped from a file.

    Arguments:
        path: Where it is from, for errors.
        array: ``(N, columns)``.
        names: Of the columns, or none.
        event: What the model takes.
        reading: How its training data were read.
        label: The class of all rows, or ``None``.
        labels: Class numbers or contexts that the file holds apart, or ``None``.

    Raises:
        DataError: columns are missing, or there are too many without names; or a value is not
            finite in single precision.
    """

    title = "row"

    def __init__(
        self,
        path: Path,
        array: np.ndarray,
        names: Sequence[str],
        event: Event,
        reading: Reading,
        label: int | None,
        labels: Tensor | None = None,
    ) -> None:
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise DataError(
                f"{path} holds {array.dtype} of shape {array.shape}; rows of numbers are needed"
            )
        self.names = range(len(array))
        self._path, self._array, self._reading = path, array, reading
        titles = list(names) or [str(i) for i in range(1, array.shape[1] + 1)]
        self._contexts = [place_of(path, titles, name) for name in reading.contexts]
        self._labels = labels
        taken = set(self._contexts)
        if event.context_dim and not reading.contexts and labels is None:
            if label is not None:
                self._labels = torch.full((len(array),), label)
            else:
                place = place_of(path, titles, LABEL)
                taken.add(place)
                words = [f"{cell:g}" for cell in array[:, place]]
                self._labels = class_numbers(words, (), event.context_dim, str(path))
        self._columns = self._modelled(titles, bool(names), taken, event)
        self._require_finite()

    def read(self, rows: range) -> Query:
        part = np.asarray(self._array[rows.start : rows.stop], dtype=np.float64)
        values = part[:, self._columns] - np.array(self._reading.offset or 0.0)
        labels = None if self._labels is None else self._labels[list(rows)]
        if self._contexts and self._reading.scaling is not None:
            labels = self._reading.scaling(part[:, self._contexts])
        return Query(rows, torch.from_numpy(values.astype(np.float32)), labels)

    def _modelled(
        self, titles: Sequence[str], named: bool, taken: set[int], event: Event
    ) -> list[int]:
        """The places of the model's columns."""
        if named and self._reading.columns:
            places = [place_of(self._path, titles, name) for name in self._reading.columns]
            others = [title for i, title in enumerate(titles) if i not in {*places, *taken}]
            if others:
                warnings.warn(
                    f"{self._path}: columns that the model does not know are passed over: "
                    f"{few(others)}",
                    stacklevel=4,
                )
            return places
        places = [i for i in range(len(titles)) if i not in taken]
        (dim,) = event.shape
        if len(places) != dim:
            known = f" ({', '.join(self._reading.columns)})" if self._reading.columns else ""
            beside = f" beside {', '.join(titles[i] for i in sorted(taken))}" if taken else ""
            raise DataError(
                f"{self._path} has {len(places)} columns{beside}, and the model takes {dim}{known}"
            )
        return places

    def _require_finite(self) -> None:
        largest = float(np.finfo(np.float32).max)
        step = max(1, LOOK // max(1, self._array.shape[1]))
        for first in range(0, len(self._array), step):
            good = np.abs(self._array[first : first + step]) <= largest  # False for NaN
            if not good.all():
                row, column = np.argwhere(~good)[0]
                raise DataError(
                    f"{self._path}, row {first + row}, column {column}: "
                    f"{self._array[first + row, column]} is no number of single precision"
                )
