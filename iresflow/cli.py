"""The command line: ``iresflow VERB ...``."""

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

import torch

from iresflow import __version__
from iresflow.commands.failures import explained
from iresflow.commands.reading.arguments import fail
from iresflow.errors import (
    CheckpointError,
    DataError,
    InversionError,
    InversionWarning,
    LinearProgramError,
    LostProcessError,
    MissingLibraryError,
    NonFiniteError,
    NoPreimageError,
    NotContractiveError,
    NotInitializedError,
    RunError,
    SpectrumError,
)

__all__ = ["main"]

VERBS = {
    "train": "train a flow",
    "sample": "draw samples, reconstructions or interpolations",
    "evaluate": "score a trained model on its test split",
    "ood": "tell outliers from a run's data by all scores",
    "certify": "print the certified Lipschitz bounds; exit code 0 only if certified",
    "relu": "what an ordinary network throws away: analyse one's own, or a paper's experiment",
}

EXPECTED = (
    CheckpointError,
    DataError,
    InversionError,
    LostProcessError,
    LinearProgramError,
    MissingLibraryError,
    NoPreimageError,
    NonFiniteError,
    NotContractiveError,
    NotInitializedError,
    OSError,  # a full disk, a directory without permission
    RunError,
    SpectrumError,
    ValueError,
)
"""What a person can cause. All else is a fault of the package, and says so."""

TRACE = "--trace"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [word for word in given if word != TRACE]
    if not arguments or arguments[0] in {"-h", "--help"}:
        verbs = "\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())
        print(
            f"usage: iresflow VERB ...\n\n{verbs}\n\niresflow VERB --help explains each option, "
            "iresflow --version tells the version. --trace shows where an error comes from."
        )
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"iresflow {__version__}, torch {torch.__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        fail(f"unknown verb {verb!r}; choose one of {', '.join(VERBS)}", code=2)
    # Imported here, so that --help of one verb doesn't pay for the libraries of all.
    run: Callable[[Sequence[str]], int] = import_module(f"iresflow.commands.{verb}").main
    warnings.showwarning = _print_warning
    warnings.simplefilter("ignore", InversionWarning)  # the verbs print what was reached
    try:
        return run(rest)
    except KeyboardInterrupt:
        fail("interrupted", code=130)
    except Exception as error:
        if TRACE in given:
            traceback.print_exception(error)
        fail(explained(error, verb, EXPECTED))


def _print_warning(
    message: Warning | str, category: type[Warning], *_: object, **__: object
) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)
