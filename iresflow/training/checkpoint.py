"""What a checkpoint holds: a model to use, and all that training needs to go on.

The model in a checkpoint is the averaged one, made ready for use: of a flow, with its certified
norms enforced and its certificate beside it. The raw weights that training moves are stored with
the state of training, untouched, so that writing a checkpoint changes nothing of the run.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from iresflow.errors import CheckpointError
from iresflow.models import Flow
from iresflow.models.certificate import Certificate
from iresflow.models.storage import (
    model_from_payload,
    read_file,
    stored_certificate,
    warn_of_other_weights,
    write_file,
)
from iresflow.training.processes import Processes
from iresflow.training.runs import RunDirectory

__all__ = [
    "Files",
    "Memory",
    "Progress",
    "Store",
    "find_checkpoint",
    "load_certified",
    "load_for_all",
    "load_model",
    "load_training",
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
    def keep(
        self,
        name: str,
        model: Mapping[str, Any],
        progress: Progress,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Keeps a checkpoint in place of the last one of that name.

        Arguments:
            name: ``last`` or ``best``.
            model: What is stored of the model, see `Ready`.
            progress: Where the training is.
            training: State dictionaries that training needs to go on; None where it never will.

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

    def keep(
        self,
        name: str,
        model: Mapping[str, Any],
        progress: Progress,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        content = {**model, "progress": asdict(progress)}
        if training is not None:
            content["training"] = dict(training)
        write_file(content, self._run.checkpoint(name))

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

    def keep(
        self,
        name: str,
        model: Mapping[str, Any],
        progress: Progress,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        if name == "best":
            self._best = {key: value.clone() for key, value in model["model"]["state"].items()}

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
            f"{run} does not exist; pass a run directory, such as runs/0000-digits"
        )
    raise CheckpointError(f"no checkpoint in {run / 'checkpoints'}: the run has not validated yet")


def load_model(path: Path, device: torch.device) -> tuple[Flow, Progress]:
    """The model of a checkpoint, in eval mode, and where its run was.

    Warns:
        CertificateWarning: the weights are not those that the checkpoint's certificate is of.
    """
    model, progress, certificate = load_certified(path, device)
    warn_of_other_weights(model, certificate, path)
    return model, progress


def load_for_all(path: Path, device: torch.device, processes: Processes) -> tuple[Flow, Progress]:
    """As `load_model`, in each of several processes; the main one reads the file."""
    model, progress = processes.on_main(lambda: load_model(path, torch.device("cpu")))
    return model.to(device), progress


def load_certified(path: Path, device: torch.device) -> tuple[Flow, Progress, Certificate | None]:
    """As `load_model`, with the stored certificate, which may be of other weights, or None."""
    content = read_file(path)
    model = model_from_payload(content["model"], device)
    if not isinstance(model, Flow):
        raise CheckpointError(f"{path} holds a {type(model).__name__}, and this is for flows")
    progress = Progress(**content.get("progress", {}))
    return model, progress, stored_certificate(content)


def load_training(path: Path) -> tuple[dict[str, Any], Progress]:
    """The training state of a checkpoint, on the CPU.

    Raises:
        CheckpointError: the checkpoint holds a model only.
    """
    content = read_file(path)
    if "training" not in content:
        raise CheckpointError(
            f"{path} holds a model only; training goes on from checkpoints/last.pt"
        )
    return content["training"], Progress(**content["progress"])
