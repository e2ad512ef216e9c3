"""What can go wrong, by name.

A wrong argument is a plain ``ValueError`` at the public boundary that received it. The classes
here are outcomes that no look at the arguments could have told: a solve that did not converge, a
checkpoint that was cut off, a directory without data.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "CertificateWarning",
    "CheckpointError",
    "DataError",
    "DerivativeError",
    "InversionError",
    "InversionWarning",
    "LostProcessError",
    "LinearProgramError",
    "MissingLibraryError",
    "NoPreimageError",
    "NonFiniteError",
    "NotContractiveError",
    "NotInitializedError",
    "RunError",
    "SpectrumError",
    "StorageWarning",
    "TrainingInterrupted",
    "UnknownBoundError",
    "UnsupportedNetworkError",
    "callers_level",
    "few",
]

ROOT = str(Path(__file__).parent)


def callers_level() -> int:
    """The ``stacklevel`` of a warning that is to name the line that called the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _passed(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    return level


def _passed(file: str) -> bool:
    return file.startswith(ROOT) or f"{os.sep}torch{os.sep}" in file


def few(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are, for a message."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


class CertificateWarning(UserWarning):
    """The weights of a file are not those that its certificate is of, or not invertible."""


class StorageWarning(UserWarning):
    """A model was built that can't be stored."""


class UnknownBoundError(ValueError):
    """A certificate was asked for a network with a layer that has no known Lipschitz bound.

    Arguments:
        layer: The layer's name, from where the certificate was asked.
        kind: What the layer is.
    """

    def __init__(self, layer: str, kind: str) -> None:
        super().__init__(layer, kind)
        self.layer = layer
        self.kind = kind

    def __str__(self) -> str:
        return (
            f"{self.layer} ({self.kind}) has no known Lipschitz bound, so nothing that holds it "
            "can be certified: build branches of the normalised layers and of the activations in "
            "iresflow.lipschitz, or derive from LipschitzMap or Activation"
        )


class MissingLibraryError(ImportError):
    """A library is not installed that only some uses need.

    Arguments:
        library: Its name.
        extra: The extra of this package that installs it.
    """

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"this needs {library}, which is not installed: pip install 'iresflow[{extra}]'",
            name=library,
        )


class InversionError(RuntimeError):
    """A solve ended without meeting its tolerance, or met a value that is not finite."""


class InversionWarning(UserWarning):
    """An inverse is as exact as the floating-point format allows, yet not as exact as asked."""


class NotContractiveError(RuntimeError):
    """A residual branch has no certified Lipschitz bound below one, so nothing may be inverted."""


class NotInitializedError(RuntimeError):
    """An ActNorm layer was used before it has seen data."""


class DerivativeError(RuntimeError):
    """A derivative was asked for that there is no formula for."""

    def __init__(
        self,
        message: str = "the gradient of an estimated log-determinant has no derivatives of its "
        "own (create_graph=True, a Hessian, a gradient penalty) and no transforms (torch.func): "
        "pass log_det=Exact(), which has all of them, or call backward or autograd.grad once",
    ) -> None:
        super().__init__(message)


class NonFiniteError(RuntimeError):
    """Training met a loss or a gradient that is not finite."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is missing, truncated or of another version."""


class DataError(RuntimeError):
    """Data is missing, unreadable, or not what a density can be fitted to."""


class RunError(RuntimeError):
    """A run directory can't be used: it exists, is missing, or holds another experiment."""


class LostProcessError(RuntimeError):
    """Another process of the same run has ended, or can't be reached any more."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop, and did so after a step, with a checkpoint written."""


class UnsupportedNetworkError(ValueError):
    """A network can't be read as a chain of piecewise linear layers.

    Arguments:
        layer: The layer's name in the network.
        kind: What the layer is.
        reason: What is wrong with it, and what is allowed.
        until: The last submodule of the chain before it, which can be read; None for none.
    """

    def __init__(self, layer: str, kind: str, reason: str, until: str | None = None) -> None:
        super().__init__(layer, kind, reason, until)
        self.layer = layer
        self.kind = kind
        self.reason = reason
        self.until = until

    def __str__(self) -> str:
        name = self.layer if self.layer.startswith("the ") else f"layer {self.layer}"
        rest = f"; the chain before it can be read with until={self.until!r}" if self.until else ""
        return f"{name} ({self.kind}) {self.reason}{rest}"


class NoPreimageError(RuntimeError):
    """No input of a layer gives the output whose preimage was asked for."""


class LinearProgramError(RuntimeError):
    """A linear program ended without an answer: at a limit of the solver or of its digits."""


class SpectrumError(RuntimeError):
    """Lanczos iterations for singular values ended without convergence."""
