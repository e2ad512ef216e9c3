"""The experiments on flows: ``python -m experiments.flows EXPERIMENT``."""

import sys
from collections.abc import Sequence

from experiments.runner import Room, run_room

__all__ = ["main"]

ROOM = Room(
    "experiments.flows",
    "python -m experiments.flows",
    {
        "families": "bits/dim of the families of flows after the same time (table 5.1)",
        "curves": "bits/dim of the digits against seconds of training, beside three peers",
        "tables": "nats of small tables and in the plane, beside splines and MAF",
        "planes": "densities in the plane beside Glow's (figure 5.2)",
    },
    note="The other families need zuko and normflows: pip install zuko normflows",
)


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code."""
    return run_room(ROOM, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
