"""The experiments on inverse problems: ``python -m experiments.inverse_problems EXPERIMENT``."""

import sys
from collections.abc import Sequence

from experiments.runner import Room, run_room

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
    return run_room(ROOM, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
