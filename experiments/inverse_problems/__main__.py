"""The experiments on inverse problems: ``python -m experiments.inverse_problems EXPERIMENT``."""

import sys
from collections.abc import Sequence

from experiments.runner import Room, run_experiment
from iresflow.cli import EXPECTED
from iresflow.commands.arguments import fail

__all__ = ["main"]

ROOM = Room(
    "experiments.inverse_problems",
    "python -m experiments.inverse_problems",
    {
        "learned": "learned operators: errors by noise and Lipschitz limit",
        "restoration": "the most probable image by flows, total variation and PatchNR",
        "posterior": "samples of a posterior by Hamiltonian Monte Carlo in the latent",
    },
)


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code."""
    try:
        return run_experiment(ROOM, arguments, lambda dataset: dataset)
    except KeyboardInterrupt:
        fail("interrupted; --into the same directory goes on", code=130)
    except EXPECTED as error:
        fail(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
