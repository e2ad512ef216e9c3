"""What a checkpoint holds: a certified model to use, and all that training needs to go on.

The model in a checkpoint is the averaged one, with its certified norms enforced. The raw weights
that training moves are stored beside it, untouched, so that writing a checkpoint changes nothing
of the run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from iresflow.errors import CheckpointError
from iresflow.models import ImageFlow, VectorFlow
from iresflow.models.certificate import Certificate
from iresflow.models.storage import (
    model_from_payload,
    read_file,
    stored_certificate,
    warn_of_other_weights,
    write_file,
)
from iresflow.training.processes import Processes

__all__ = [
    "Progress",
    "find_checkpoint",
    "load_certified",
    "load_for_all",
    "load_model",
    "load_training",
    "save_checkpoint",
]


@final
@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: Optimiser steps done.
        seconds: Time spent in training steps.
        best: The best validation score, in the objective's unit; lower is better.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = float("inf")


def save_checkpoint(
    path: Path,
    model: ImageFlow | VectorFlow,
    certificate: Certificate,
    progress: Progress,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint, whole or not at all.

    Arguments:
        path: The file.
        model: The model to use, its certified norms enforced.
        certificate: Its certificate, stored as plain values.
        progress: Where the run is.
        training: State dictionaries that training needs to go on; None where it never will.

    Raises:
        CheckpointError: it can't be written; the previous file is intact.
    """
    content = {
        "model": model.payload(),
        "certificate": certificate.to_dict(),
        "progress": asdict(progress),
    }
    if training is not None:
        content["training"] = dict(training)
    write_file(content, path)


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


def load_model(path: Path, device: torch.device) -> tuple[ImageFlow | VectorFlow, Progress]:
    """The model of a checkpoint, in eval mode, and where its run was.

    Warns:
        CertificateWarning: the weights are not those that the checkpoint's certificate is of.
    """
    model, progress, certificate = load_certified(path, device)
    warn_of_other_weights(model, certificate, path)
    return model, progress


def load_for_all(
    path: Path, device: torch.device, processes: Processes
) -> tuple[ImageFlow | VectorFlow, Progress]:
    """As `load_model`, in each of several processes; the main one reads the file."""
    model, progress = processes.on_main(lambda: load_model(path, torch.device("cpu")))
    return model.to(device), progress


def load_certified(
    path: Path, device: torch.device
) -> tuple[ImageFlow | VectorFlow, Progress, Certificate | None]:
    """As `load_model`, with the stored certificate, which may be of other weights, or None."""
    content = read_file(path)
    model = model_from_payload(content["model"], device)
    assert isinstance(model, ImageFlow | VectorFlow)
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
