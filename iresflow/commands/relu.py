"""``iresflow relu``: the analysis of one's own network, and the papers' experiments.

The experiments need the source checkout: ``python -m experiments.relu`` runs them there, too.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import iresflow
from iresflow.errors import RunError

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Runs the analysis or an experiment; returns the exit code.

    Raises:
        RunError: the package was installed without its experiments.
    """
    if arguments and arguments[0] == "analyse":
        from iresflow.commands.networks import (
            analyse,  # which draws: not every verb shall load that
        )

        return analyse.main(arguments[1:])
    checkout = Path(iresflow.__file__).parents[1]
    if not (checkout / "experiments" / "relu" / "__main__.py").is_file():
        raise RunError(
            "iresflow relu analyse FACTORY is there; the papers' experiments are no part of the "
            "installed package: get the source checkout, and run this command in it "
            "(pip install -e .)"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    # By name, since nothing in the package may depend on the experiments.
    return import_module("experiments.relu.__main__").main(arguments)
