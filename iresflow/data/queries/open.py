"""From a path to the samples in it, by what it is and by what the model takes."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iresflow.data.images.walk import formats
from iresflow.data.queries.base import Event, Queries
from iresflow.data.queries.images import ArrayImages, FileImages
from iresflow.data.queries.rows import TableRows
from iresflow.data.reading import Reading
from iresflow.data.tables.files import COLUMNS, column_names, read_parts
from iresflow.errors import DataError

__all__ = ["open_queries"]

KNOWN_ARRAYS = ("labels", "contexts")
"""Names of a ``.npz`` file's arrays that say what the samples are conditional on."""


def open_queries(
    path: str | Path, event: Event, reading: Reading, label: int | None = None
) -> Queries:
    """The samples in a directory or a file.

    Images are files of any format that Pillow reads, or integers in a ``.npy`` or ``.npz`` file;
    vectors are rows of a ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file. A ``.npz`` file has
    one array of samples, and perhaps ``labels`` ``(N,)`` or ``contexts`` ``(N, C)`` (as the model
    takes them), and the names of the ``columns``. ``.npy`` files are mapped, and image files read
    when they are asked for, so that sets may be larger than memory; other files are read whole.

    Arguments:
        path: Where they are.
        event: What the model takes.
        reading: How its training data were read.
        label: The class of all samples, for conditional models; ``None`` for that in the data.

    Raises:
        DataError: nothing is there, or it is not what the model takes.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; a file or a directory of samples was looked for")
    kind = path.suffix.lower()
    if path.is_dir() or kind not in (".npy", ".npz", ".csv", ".parquet"):
        if event.levels is None:
            raise DataError(
                f"{path} is {'a directory' if path.is_dir() else 'no table'}, and the model is of "
                f"vectors of {event.shape[0]} dimensions: give a .csv, .parquet, .npy or .npz file"
            )
        if not path.is_dir():
            formats()  # loads what reads them
        return FileImages(path, event, reading, label)
    if kind in (".csv", ".parquet"):
        if event.levels is not None:
            raise DataError(f"{path} is a table, and the model is of images")
        table = read_parts(path, min_rows=1)
        return TableRows(path, table.values, table.names, event, reading, label)
    array, known, titles = _mapped(path) if kind == ".npy" else _unpacked(path)
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{path} holds no samples")
    labels = _checked(path, known, event, len(array))
    if event.levels is None:
        names = column_names(path, titles, array.shape[-1])
        return TableRows(path, array, names, event, reading, label, labels)
    if event.context_dim and labels is None:
        if label is None:
            raise DataError(
                f"the model is conditional, and {path} has no labels: pass --label, or give a "
                ".npz file with labels or contexts"
            )
        labels = torch.full((len(array),), label)
    return ArrayImages(path, array, event, labels)


def _mapped(path: Path) -> tuple[np.ndarray, None, None]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path} is not an array, or is truncated ({reason})") from None
    return array, None, None


def _unpacked(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The samples, what they are conditional on, and the names of their columns."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path} holds no arrays, or is truncated ({reason})") from None
    held = ", ".join(arrays) or "of nothing"
    titles = arrays.pop(COLUMNS, None)
    known = [arrays.pop(name) for name in KNOWN_ARRAYS if name in arrays]
    if len(arrays) != 1 or len(known) > 1:
        raise DataError(
            f"{path} holds the arrays {held}; one of samples is needed, and at most labels or "
            f"contexts, and {COLUMNS}, the columns' names, beside it"
        )
    return next(iter(arrays.values())), known[0] if known else None, titles


def _checked(path: Path, labels: np.ndarray | None, event: Event, count: int) -> Tensor | None:
    """What a file's samples are conditional on, or a DataError where it can't be."""
    if labels is None or event.context_dim == 0:
        return None
    classes = labels.ndim == 1 and labels.dtype.kind in "iu"
    if len(labels) != count or not (classes or labels.shape[1:] == (event.context_dim,)):
        raise DataError(
            f"{path} has labels of shape {labels.shape} ({labels.dtype}) for {count} samples; "
            f"integers ({count},) or contexts ({count}, {event.context_dim}) are needed"
        )
    if not classes:
        return torch.from_numpy(labels.astype(np.float32))
    if labels.min() < 0 or labels.max() >= event.context_dim:
        raise DataError(
            f"{path} has labels from {labels.min()} to {labels.max()}; the model has the classes "
            f"0 .. {event.context_dim - 1}"
        )
    return torch.from_numpy(labels.astype(np.int64))
