"""The experiments on outliers: ``python -m experiments.ood EXPERIMENT``."""

import sys
from collections.abc import Sequence

from experiments.runner import Room, run_room

__all__ = ["main"]

ROOM = Room(
    "experiments.ood",
    "python -m experiments.ood",
    {
        "images": "flows of images asked about images from elsewhere, by all scores",
        "tables": "flows of two tables, beside detectors of scikit-learn",
    },
)


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code."""
    return run_room(ROOM, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
