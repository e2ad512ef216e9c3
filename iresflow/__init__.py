"""Normalizing flows on invertible residual networks, with certified invertibility."""

import os

# Before torch starts its threads. Those that wait for others must not take their processor: on a
# busy machine that makes a training step of a small model thirty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from iresflow.bijections import Accuracy
from iresflow.errors import (
    CertificateWarning,
    CheckpointError,
    DataError,
    DerivativeError,
    InversionError,
    InversionWarning,
    NonFiniteError,
    NotContractiveError,
    NotInitializedError,
    StorageWarning,
    UnknownBoundError,
)
from iresflow.lipschitz import compile_kernels, constrain, norm_bound
from iresflow.logdet import (
    DifferentiableSeries,
    Exact,
    Geometric,
    Krylov,
    Lanczos,
    Poisson,
    PowerSeries,
    RandomSeries,
    ReducedPrecision,
)
from iresflow.models import Flow, ImageFlow, InvertibleClassifier, StoredModel, VectorFlow
from iresflow.models.pretrained import find as _find
from iresflow.models.storage import read_model, stored_certificate, warn_of_other_weights
from iresflow.solvers import Anderson, Broyden, FixedPoint
from iresflow.training.build import resolve_device
from iresflow.training.fitting import Fitted, fit

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "Anderson",
    "Broyden",
    "CertificateWarning",
    "CheckpointError",
    "DataError",
    "DerivativeError",
    "DifferentiableSeries",
    "Exact",
    "Fitted",
    "FixedPoint",
    "Flow",
    "Geometric",
    "ImageFlow",
    "InversionError",
    "InversionWarning",
    "InvertibleClassifier",
    "Krylov",
    "Lanczos",
    "NonFiniteError",
    "NotContractiveError",
    "NotInitializedError",
    "Poisson",
    "PowerSeries",
    "RandomSeries",
    "ReducedPrecision",
    "StorageWarning",
    "UnknownBoundError",
    "VectorFlow",
    "compile_kernels",
    "constrain",
    "fit",
    "load",
    "norm_bound",
    "pretrained",
]


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> StoredModel:
    """Loads a model from a file that ``flow.save`` or training wrote, in eval mode.

    Nothing but tensors and plain values is read (``weights_only=True``).

    Arguments:
        path: The file.
        device: Where the model shall live.

    Raises:
        CheckpointError: no file, a damaged one, or one of another version or program.
        ValueError: the device can't be used here.

    Warns:
        CertificateWarning: the weights in the file are not those that its certificate is of, or
            something in the model is not finite or not invertible; or there is no certificate.
    """
    model, content = read_model(path, resolve_device(str(device)))
    warn_of_other_weights(model, stored_certificate(content), path)
    return model


def pretrained(name: str, device: str | torch.device = "cpu") -> StoredModel:
    """A model that travels with the package, in eval mode, with its certificate checked.

    `iresflow.models.pretrained.described` has its test score; ``experiments/pretrain.py`` made it.

    Arguments:
        name: Such as ``digits``; `iresflow.models.pretrained.names` lists all.
        device: Where the model shall live.

    Raises:
        ValueError: there is none of that name, or the device can't be used here.
    """
    return load(_find(name), device)
