"""The experiments on invertible classifiers: ``python -m experiments.classifiers EXPERIMENT``."""

import sys
from collections.abc import Sequence

from experiments.runner import Room, run_room

__all__ = ["main"]

ROOM = Room(
    "experiments.classifiers",
    "python -m experiments.classifiers",
    {
        "dynamics": "paths through residual networks in one dimension (figure 4.1)",
        "limits": "errors, singular values and inverses by Lipschitz limit (table 4.1, figures)",
        "spheres": "two kinds of attacks on adversarial spheres (figure 6.3)",
        "metamers": "images with the logits of one and the nuisance of another (6.1, 6.5)",
        "shift": "a cue that misleads in the test (remark 6.12, figure 6.4)",
        "hiding": "ways to hide the class from a nuisance classifier, under that cue",
        "labels": "few labels: densities of classes beside a supervised network (section 5.6)",
    },
    augments=True,
)


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code."""
    return run_room(ROOM, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
