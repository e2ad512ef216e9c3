"""A run's directory: where its configuration, metrics, samples and checkpoints lie."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import yaml

from iresflow.errors import RunError

__all__ = ["RunDirectory", "new_directory"]


def new_directory(parent: str | Path, name: str) -> Path:
    """Makes the directory ``0000-name`` below a parent, with the next free number.

    Raises:
        RunError: it can't be made.
    """
    parent = Path(parent)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "run"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1 + max(
            (int(p.name[:4]) for p in parent.iterdir() if re.match(r"\d{4}-", p.name)),
            default=-1,
        )
        path = parent / f"{number:04d}-{slug}"
        path.mkdir()
    except OSError as error:
        raise RunError(f"could not make a run directory in {parent}: {error}") from None
    return path


@final
class RunDirectory:
    """``runs/0000-name/`` with ``config.yaml``, ``metrics.jsonl``, ``samples/``, ``checkpoints/``.

    Arguments:
        path: The directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

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
        if not (path / "config.yaml").is_file():
            here = (
                "is not a run directory (no config.yaml in it)" if path.exists() else "is missing"
            )
            raise RunError(
                f"{path} {here}; a run is what train.py makes, such as runs/0000-digits"
            )
        return cls(path)

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

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

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Writes the resolved configuration."""
        _replace(self.config_file, yaml.safe_dump(dict(values), sort_keys=False))

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Appends a line to the metrics."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drops the lines of steps after ``step``: a run resumed there writes them again."""
        if not self.metrics_file.is_file():
            return
        kept = []
        for line in self.metrics_file.read_text().splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line)
            except json.JSONDecodeError:
                continue  # the line that a killed process was writing
        _replace(self.metrics_file, "".join(line + "\n" for line in kept))


def _replace(path: Path, text: str) -> None:
    """Writes beside, then renames: a full disk leaves the file as it was."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_text(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
