"""Normalizing flows on invertible residual networks, with certified invertibility."""

import os

import torch

from iresflow.errors import (
    CheckpointError,
    DataError,
    InversionError,
    InversionWarning,
    NonFiniteError,
    NotContractiveError,
    NotInitializedError,
)
from iresflow.logdet import Exact, Geometric, Krylov, Lanczos, Poisson, PowerSeries, RandomSeries
from iresflow.models import Flow, ImageFlow, StoredModel, VectorFlow
from iresflow.models.storage import model_from_payload, read_file

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DataError",
    "Exact",
    "Flow",
    "Geometric",
    "ImageFlow",
    "InversionError",
    "InversionWarning",
    "Krylov",
    "Lanczos",
    "NonFiniteError",
    "NotContractiveError",
    "NotInitializedError",
    "Poisson",
    "PowerSeries",
    "RandomSeries",
    "VectorFlow",
    "load",
]


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> StoredModel:
    """Loads a model from a file that ``flow.save`` or training wrote, in eval mode.

    Nothing but tensors and plain values is read (``weights_only=True``).

    Arguments:
        path: The file.
        device: Where the model shall live.

    Raises:
        CheckpointError: no file, a truncated one, or one of another version or program.
    """
    return model_from_payload(read_file(path)["model"], device)
