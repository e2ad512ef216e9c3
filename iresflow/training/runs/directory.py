"""A run's directory: where its configuration, metrics, samples and checkpoints lie."""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import yaml

from iresflow.errors import RunError
from iresflow.training.loop.processes import Processes
from iresflow.training.runs.lock import locked
from iresflow.training.values import read_yaml

__all__ = ["RunDirectory", "new_directory", "read_options", "write_whole"]

CONFIG = "config.yaml"
LOCK = ".lock"


def new_directory(parent: str | Path, name: str) -> Path:
    """Makes the directory ``0000-name`` below a parent, with the next free number.

    Raises:
        RunError: it can't be made.
    """
    parent = Path(parent)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "run"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1 + max(_numbers(parent), default=-1)):
            path = parent / f"{number:04d}-{slug}"
            if _claimed(path, number):
                return path
    except OSError as error:
        raise RunError(f"could not make a run directory in {parent}: {error}") from None
    raise AssertionError  # numbers don't end


def _numbers(parent: Path) -> Iterator[int]:
    found = (re.match(r"(\d{4,})-", path.name) for path in parent.iterdir())
    return (int(match[1]) for match in found if match)


def _claimed(path: Path, number: int) -> bool:
    """Makes a directory, unless another process has taken its number for whatever name."""
    # Made under a name of the number alone, which only one process can: the rest is for it to do.
    claim = path.parent / f".{number:04d}"
    try:
        claim.mkdir()
    except FileExistsError:
        return False
    if number in _numbers(path.parent):
        claim.rmdir()
        return False
    claim.rename(path)
    return True


def read_options(file: Path) -> dict[str, Any]:
    """The options that a run has written down, as plain values.

    Raises:
        RunError: they can't be read, in one line.
    """
    try:
        values = read_yaml(file)
    except ValueError as error:
        raise RunError(str(error)) from None
    if not values:
        raise RunError(f"{file} is damaged: it holds no options")
    return values


@final
class RunDirectory:
    """``runs/0000-name/`` with ``config.yaml``, ``metrics.jsonl``, ``samples/``, ``checkpoints/``.

    Arguments:
        path: The directory.

    Attributes:
        options: What the run is of, as last written by `write_options`: checkpoints hold them too.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.options: dict[str, Any] = {}

    @classmethod
    def create(cls, parent: str | Path, name: str) -> "RunDirectory":
        """A new directory with the next free number.

        Raises:
            RunError: it can't be made.
        """
        run = cls(new_directory(parent, name))
        run.make()
        return run

    def make(self) -> None:
        """Makes what is missing of the directory itself.

        Raises:
            RunError: it can't be made.
        """
        try:
            for path in (self.samples, self.checkpoint("last").parent):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"could not make a run directory at {self.path}: {error}") from None

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """An existing run.

        Raises:
            RunError: it is not one.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            here = (
                "is not a run directory (no config.yaml in it)" if path.exists() else "is missing"
            )
            raise RunError(
                f"{path} {here}; a run is what iresflow train makes, such as runs/0000-digits"
            )
        return cls(path)

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Directory of the sample and reconstruction grids."""
        return self.path / "samples"

    @property
    def events(self) -> Path:
        """Directory of the TensorBoard events."""
        return self.path / "tensorboard"

    def checkpoint(self, name: str) -> Path:
        """The checkpoint ``last`` or ``best``."""
        return self.path / "checkpoints" / f"{name}.pt"

    def locked(self, processes: Processes | None = None) -> AbstractContextManager[None]:
        """Keeps other processes from training in this directory. Errors: `Lock.acquire`."""
        return locked(self.path / LOCK, f"trains in {self.path}", processes)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Writes the resolved configuration."""
        self.write_options(self.config_file, values)

    def write_options(self, file: Path, values: Mapping[str, Any]) -> None:
        """Writes what the run is of, for `read_options`."""
        self.options = dict(values)
        write_whole(file, yaml.safe_dump(self.options, sort_keys=False))

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Appends a line to the metrics."""
        with _errors_named(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def metrics_size(self) -> int:
        """Bytes of the metrics, all of them on the disk."""
        try:
            with self.metrics_file.open("rb+") as file:
                os.fsync(file.fileno())
                return file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def forget_metrics_after(self, step: int, size: int | None = None) -> None:
        """Drops what a run resumed at a step writes again, and the line that a kill cut off.

        Arguments:
            step: Lines of later steps are dropped.
            size: Bytes that were there when the checkpoint of the step was written: the run
                writes what lies after them again. None where a checkpoint does not say.
        """
        if not self.metrics_file.is_file():
            return
        kept = []
        for line in self.metrics_file.read_bytes()[:size].splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line)
            except (ValueError, AttributeError, TypeError):
                continue  # the line that a killed process was writing
        write_whole(self.metrics_file, b"".join(line + b"\n" for line in kept))

    def remove_leftovers(self) -> None:
        """Removes the files that a killed process was writing; only for who holds the lock."""
        for directory in (self.path, self.checkpoint("last").parent):
            for path in directory.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    path.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes beside, then renames: a full disk leaves the file as it was.

    Raises:
        RunError: it can't be written.
    """
    beside = path.with_name(f".{path.name}.tmp")
    with _errors_named(path):
        try:
            beside.write_bytes(content.encode() if isinstance(content, str) else content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"could not write {path}: {error.strerror or error}") from None
