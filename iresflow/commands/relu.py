"""``iresflow relu``: the experiments on ReLU networks, where the source checkout has them."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import iresflow
from iresflow.errors import RunError

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code.

    Raises:
        RunError: the package was installed without its experiments.
    """
    checkout = Path(iresflow.__file__).parents[1]
    if not (checkout / "experiments" / "relu" / "__main__.py").is_file():
        raise RunError(
            "the experiments are no part of the installed package: get the source checkout, and "
            "run this command in it (pip install -e .)"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    # By name, since nothing in the package may depend on the experiments.
    return import_module("experiments.relu.__main__").main(arguments)
