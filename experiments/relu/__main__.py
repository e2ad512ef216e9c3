"""The papers' experiments, one after another: ``python -m experiments.relu EXPERIMENT``.

``iresflow relu EXPERIMENT`` does the same where the package lies in its source checkout.
"""

import sys
from collections.abc import Sequence

import torch

from experiments.relu.base import Samples
from experiments.runner import Room, run_experiment
from iresflow.data import Dataset, Split

__all__ = ["main"]

ROOM = Room(
    "experiments.relu",
    "iresflow relu",
    {
        "preimage": "the sets of inputs that a layer maps to one output",
        "stability": "singular values of the linearisation, layer by layer",
        "frames": "bias estimation, and reconstruction from one layer",
        "inversion": "inversion of generative networks by linear programs",
    },
    note="iresflow relu analyse FACTORY reports on one's own network.",
)


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code."""
    return run_experiment(ROOM, arguments, _samples)


def _samples(dataset: Dataset) -> Samples:
    def floats(split: Split) -> torch.Tensor:
        top = 1 if dataset.levels is None else dataset.levels - 1
        return split.values.float() / top

    # Nothing is decided on the validation part, so it stays with the training data.
    parts = (dataset.train, dataset.validation)
    labels = [part.labels for part in parts if part.labels is not None]
    return Samples(
        dataset.name,
        torch.cat([floats(part) for part in parts]),
        torch.cat(labels) if labels else None,
        floats(dataset.test),
        dataset.test.labels,
        dataset.classes,
    )


if __name__ == "__main__":
    from iresflow.cli import main as command_line  # which says in one line what went wrong

    sys.exit(command_line(["relu", *sys.argv[1:]]))
