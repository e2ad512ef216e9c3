"""The experiments on outliers: ``python -m experiments.ood EXPERIMENT``."""

import sys
from collections.abc import Sequence

from experiments.runner import Room, run_experiment
from iresflow.cli import EXPECTED
from iresflow.commands.arguments import fail

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
    try:
        return run_experiment(ROOM, arguments, lambda dataset: dataset)
    except KeyboardInterrupt:
        fail("interrupted; --into the same directory goes on", code=130)
    except EXPECTED as error:
        fail(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
