"""What a checkpoint holds: a model to use, and all that training needs to go on.

The model in a checkpoint is the averaged one, made ready for use: of a flow, with its certified
norms enforced and its certificate beside it. The raw weights that training moves are stored with
the state of training, untouched, so that writing a checkpoint changes nothing of the run.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from iresflow.errors import CheckpointError
from iresflow.models import Flow, pretrained
from iresflow.models.certificates.certificate import Certificate
from iresflow.models.certified import CertifiedModel
from iresflow.models.files import read_file, write_file
from iresflow.models.storage import read_model, stored_certificate, warn_of_other_weights
from iresflow.training.loop.processes import Processes
from iresflow.training.runs.directory import RunDirectory
from iresflow.training.runs.known_reading import reading_of_run

__all__ = [
    "Files",
    "Memory",
    "Progress",
    "Store",
    "find_checkpoint",
    "find_training",
    "flow_of",
    "load_any",
    "load_certified",
    "load_for_all",
    "load_model",
    "load_training",
    "options_of",
]


@final
@dataclass
class Progress:
    """Where a training is.

    Attributes:
        step: Optimiser steps done.
        seconds: Time spent in training steps.
        best: The best validation score, in the objective's unit; lower is better.
        stale: Validations since that one.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = float("inf")
    stale: int = 0


class Store(ABC):
    """Where the checkpoints ``last`` and ``best`` of a training are kept."""

    @abstractmethod
    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Keeps a checkpoint in place of the last one of that name.

        Arguments:
            name: ``last`` or ``best``.
            content: What is stored of the model, see `Ready`; ``progress``, a `Progress` as plain
                values; and, where training is to go on from it, its state as ``training``.

        Raises:
            CheckpointError: it can't be written; the previous one is intact.
        """

    @abstractmethod
    def weights(self, name: str) -> Mapping[str, torch.Tensor] | None:
        """The state of the model in a checkpoint; None where there is none."""

    @property
    @abstractmethod
    def last(self) -> str:
        """Where the last checkpoint is, in words."""


@final
class Files(Store):
    """Checkpoints in a run's directory, each written whole or not at all.

    Arguments:
        run: The directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        own: dict[str, Any] = {"options": self._run.options}
        if (reading := reading_of_run(self._run.path)) is not None:
            own["reading"] = reading.to_dict()
        write_file({**content, **own}, self._run.checkpoint(name))

    def weights(self, name: str) -> Mapping[str, torch.Tensor] | None:
        path = self._run.checkpoint(name)
        return read_file(path)["model"]["state"] if path.is_file() else None

    @property
    def last(self) -> str:
        path = self._run.checkpoint("last")
        return f"the last good checkpoint is {path}" if path.is_file() else "no checkpoint yet"


@final
class Memory(Store):
    """The best weights alone, in memory: for a training that leaves no file."""

    def __init__(self) -> None:
        self._best: Mapping[str, torch.Tensor] | None = None

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        if name == "best":
            self._best = {key: value.clone() for key, value in content["model"]["state"].items()}

    def weights(self, name: str) -> Mapping[str, torch.Tensor] | None:
        return self._best if name == "best" else None

    @property
    def last(self) -> str:
        return "no checkpoint without a run directory"


def find_checkpoint(run: str | Path, name: str = "best") -> Path:
    """The checkpoint of a run directory, or the file itself if ``run`` is one.

    Raises:
        CheckpointError: there is none.
    """
    run = Path(run)
    if run.is_file():
        return run
    for candidate in (name, "last"):
        path = run / "checkpoints" / f"{candidate}.pt"
        if path.is_file():
            return path
    if not run.exists():
        raise CheckpointError(
            f"{run} does not exist; pass a run directory, such as runs/0000-digits, or a "
            f"pretrained model: {', '.join(pretrained.names())}"
        )
    raise CheckpointError(
        f"no checkpoint in {run / 'checkpoints'}: {run} is no run directory, or its run has not "
        "validated yet"
    )


def load_model(path: Path, device: torch.device) -> tuple[Flow, Progress]:
    """The flow of a checkpoint, in eval mode, and where its run was.

    Raises:
        CheckpointError: it holds another kind of model.

    Warns:
        CertificateWarning: the weights are not those that the checkpoint's certificate is of.
    """
    model, progress = load_any(path, device)
    return flow_of(model, path), progress


def flow_of(model: CertifiedModel, path: Path) -> Flow:
    """The model of a checkpoint, if it is a flow.

    Raises:
        CheckpointError: it is of another kind.
    """
    if not isinstance(model, Flow):
        raise CheckpointError(f"{path} holds a {type(model).__name__}, and this is for flows")
    return model


def load_for_all(
    path: Path, device: torch.device, processes: Processes
) -> tuple[CertifiedModel, Progress]:
    """The certified model of a checkpoint, in eval mode, in each of several processes.

    The main one reads the file. Errors and warnings: as `load_certified` and `load_model`.
    """
    model, progress = processes.on_main(lambda: load_any(path, torch.device("cpu")))
    return model.to(device), progress


def load_certified(
    path: Path, device: torch.device
) -> tuple[CertifiedModel, Progress, Certificate | None]:
    """A flow or classifier with its stored certificate, which may be of other weights, or None.

    Raises:
        CheckpointError: the file holds a model that can't be certified.
    """
    model, content = read_model(path, device)
    if not isinstance(model, CertifiedModel):
        raise CheckpointError(
            f"{path} holds a {type(model).__name__}, and this is for flows and invertible "
            "classifiers"
        )
    return model, _progress(content, path), stored_certificate(content)


def load_any(path: Path, device: torch.device) -> tuple[CertifiedModel, Progress]:
    """The certified model of a checkpoint, in eval mode, and where its run was.

    Errors and warnings: as `load_certified` and `load_model`.
    """
    model, progress, certificate = load_certified(path, device)
    warn_of_other_weights(model, certificate, path)
    return model, progress


def load_training(path: Path) -> tuple[dict[str, Any], Progress]:
    """The training state of a checkpoint, on the CPU.

    Raises:
        CheckpointError: the checkpoint holds a model only.
    """
    content = read_file(path)
    if not isinstance(content.get("training"), dict):
        raise CheckpointError(
            f"{path} holds a model only; training goes on from checkpoints/last.pt"
        )
    return content["training"], _progress(content, path)


def find_training(run: RunDirectory) -> tuple[dict[str, Any], Progress] | None:
    """What a run goes on from; None where it was killed before it had any checkpoint.

    What a killed process left behind beside it is removed.

    Raises:
        CheckpointError: a checkpoint is damaged, or was removed.
    """
    run.remove_leftovers()
    last, best = run.checkpoint("last"), run.checkpoint("best")
    if not last.is_file() and not best.is_file():
        run.forget_metrics_after(0, 0)
        return None
    state, progress = load_training(last)
    if progress.best < float("inf"):
        read_file(best)  # the run would otherwise believe in one that it lacks
    written = state.get("recorder") or {}
    run.forget_metrics_after(progress.step, written.get("size"))
    return state, progress


def options_of(path: Path) -> dict[str, Any]:
    """The options of the run that a checkpoint is of; empty for one of an older version."""
    options = read_file(path).get("options")
    return options if isinstance(options, dict) else {}


def _progress(content: Mapping[str, Any], path: Path) -> Progress:
    try:
        progress = Progress(**content.get("progress", {}))
    except TypeError:
        progress = Progress(-1)
    counts, times = (progress.step, progress.stale), (progress.seconds, progress.best)
    if not all(type(n) is int and n >= 0 for n in counts) or not all(
        isinstance(t, int | float) for t in times
    ):
        raise CheckpointError(f"{path} is damaged: it does not say where its training was")
    return progress
