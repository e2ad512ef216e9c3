"""``iresflow evaluate --data``: the log-density of each of the user's own samples, in a file."""

import csv
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from jsonargparse import Namespace
from tqdm import tqdm

from iresflow.commands.output import Output, make_directory, require_apart
from iresflow.commands.samples.own_samples import open_samples
from iresflow.data.queries import Queries, Query
from iresflow.data.reading import Reading
from iresflow.errors import few
from iresflow.lipschitz import compile_kernels
from iresflow.models import Flow, ImageFlow
from iresflow.training.build import resolve_device
from iresflow.training.checkpoint import find_checkpoint, load_model
from iresflow.training.evaluation.single import Scoring, SingleScores
from iresflow.training.objectives.contexts import context_of
from iresflow.training.runs.known_data import own_places
from iresflow.training.runs.known_reading import reading_of

__all__ = ["score_own_samples"]


def score_own_samples(options: Namespace) -> int:
    """Scores all samples of ``--data`` and writes ``--scores``; returns the exit code.

    Raises:
        ValueError: options that don't fit together, or that the model has no use for.
        DataError: the data can't be read, or are not what the model takes.
    """
    out = Path(options.scores)
    if out.suffix not in FORMATS:
        raise ValueError(f"--scores must end in {' or '.join(FORMATS)}, got {options.scores}")
    require_apart("--scores", out, [Path(options.data), *own_places(options.run)])
    scoring = Scoring(options.draws, options.probes, options.level, options.seed)
    compile_kernels()
    path = find_checkpoint(options.run, options.checkpoint)
    model, _ = load_model(path, resolve_device(options.device))
    queries = _open(options, model, reading_of(path))
    unit = "bits_per_dim" if isinstance(model, ImageFlow) else "log_prob"
    total, failed = _Sum(), list[str]()
    make_directory("--scores", out.parent)
    with (
        FORMATS[out.suffix](out, queries, unit) as table,
        tqdm(total=len(queries), unit="sample", disable=None) as bar,
    ):
        for first in range(0, len(queries), options.batch_size):
            rows = range(first, min(first + options.batch_size, len(queries)))
            query = queries.read(rows)
            failed += query.errors
            if len(query):
                scores = _score(scoring, model, query)
                table.write(query.rows, scores)
                total.add(scores.values.double().cpu().numpy())
            bar.update(len(rows))
        if total.count + total.infinite == 0:
            raise ValueError(f"no sample of {options.data} could be read: {few(failed)}")
    print(f"{unit:<12} {total} over {total.count} samples\nwritten      {out}")
    if total.infinite:
        print(
            f"warning: {total.infinite} of {total.count + total.infinite} samples left the range "
            f"of {next(model.parameters()).dtype}: what they score is infinite, and so are both "
            "ends of its interval",
            file=sys.stderr,
        )
    if failed:
        print(f"warning: {len(failed)} files could not be read: {few(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _open(options: Namespace, model: Flow, reading: Reading) -> Queries:
    if len(model.context_shape) > 1:
        raise ValueError("this model is conditional on images: ask flow.likelihood for densities")
    return open_samples(options.data, options, model, reading)


def _score(scoring: Scoring, model: Flow, query: Query) -> SingleScores:
    like = next(model.parameters())
    values = query.values.to(like.device)
    if not isinstance(model, ImageFlow):
        values = values.to(like.dtype)
    return scoring(model, values, context_of(query.labels, model.context_dim, like))


@final
class _Sum:
    """Mean and spread of numbers that come in parts, and how many of them are infinite."""

    def __init__(self) -> None:
        self.count, self.infinite, self._mean, self._squares = 0, 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        self.infinite += int((~finite).sum())
        values = values[finite]
        if len(values) == 0:
            return
        # Chan, Golub and LeVeque (1979): no difference of large sums.
        count = self.count + len(values)
        step = float(values.mean()) - self._mean
        self._squares += float(((values - values.mean()) ** 2).sum())
        self._squares += step**2 * self.count * len(values) / count
        self._mean += step * len(values) / count
        self.count = count

    def __str__(self) -> str:
        if self.count == 0:
            return "none that is finite,"
        spread = (self._squares / max(1, self.count - 1)) ** 0.5
        return f"{self._mean:.4f} in the mean, standard deviation {spread:.4f},"


class _Scores(Output):
    """A file of scores.

    Arguments:
        path: The file.
        queries: What is scored.
        unit: Name of the column of values.
    """

    def __init__(self, path: Path, queries: Queries, unit: str) -> None:
        super().__init__(path)
        self.queries = queries
        errors = ("standard_error", "truncation_bound", "low", "high")
        self.columns = (queries.title, unit, *errors)
        self.empty = True
        self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *rest: object
    ) -> None:
        super().__exit__(kind, error, *rest)
        if kind is None:
            return
        if self.empty:
            self.partial.unlink()
        else:
            print(
                f"not finished: what was scored is in {self.partial}, which stays; the same "
                "command begins anew",
                file=sys.stderr,
            )

    def discard(self) -> None:
        """Keeps it: what was scored is of use."""

    def write(self, rows: Sequence[int], scores: SingleScores) -> None:
        """Writes the scores of some samples."""
        self.empty = False
        columns = (
            scores.values,
            scores.standard_errors,
            scores.truncation_bounds,
            scores.low,
            scores.high,
        )
        self.put(rows, np.stack([column.double().cpu().numpy() for column in columns], axis=1))

    @abstractmethod
    def open(self) -> None:
        """Makes the file."""

    @abstractmethod
    def put(self, rows: Sequence[int], numbers: np.ndarray) -> None:
        """Writes numbers ``(B, 5)``."""


@final
class _Csv(_Scores):
    """One line a sample."""

    def open(self) -> None:
        self._file = self.partial.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(self.columns)

    def put(self, rows: Sequence[int], numbers: np.ndarray) -> None:
        for row, values in zip(rows, numbers, strict=True):
            self._writer.writerow([self.queries.names[row], *(f"{v:.9g}" for v in values)])

    def close(self, whole: bool) -> None:
        self._file.close()


@final
class _Npy(_Scores):
    """A structured array, mapped from the file; samples that can't be read are left out."""

    def open(self) -> None:
        names = self.queries.names
        first = "i8" if isinstance(names, range) else f"U{max(map(len, names))}"
        kind = np.dtype([(self.columns[0], first), *((name, "f8") for name in self.columns[1:])])
        self._array = np.lib.format.open_memmap(
            self.partial, mode="w+", dtype=kind, shape=(len(names),)
        )
        self._count = 0

    def put(self, rows: Sequence[int], numbers: np.ndarray) -> None:
        part = self._array[self._count : self._count + len(rows)]
        part[self.columns[0]] = [self.queries.names[row] for row in rows]
        for name, values in zip(self.columns[1:], numbers.T, strict=True):
            part[name] = values
        self._count += len(rows)

    def close(self, whole: bool) -> None:
        array = self._array
        array.flush()
        if self._count == len(array):
            return
        # Samples that could not be read, or a stop: a file of those that were scored.
        kept = np.array(array[: self._count])
        del self._array, array
        with self.partial.open("wb") as file:
            np.save(file, kept)


FORMATS: dict[str, type[_Scores]] = {".csv": _Csv, ".npy": _Npy}
