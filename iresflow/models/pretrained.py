"""Models that travel with the package, trained by ``experiments/pretrain.py``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from iresflow.errors import CheckpointError
from iresflow.models.files import read_file

__all__ = ["PretrainedModel", "described", "find", "located", "names"]

FOLDER = Path(__file__).parents[1] / "weights"


@final
@dataclass(frozen=True)
class PretrainedModel:
    """What is known of a packaged model.

    Attributes:
        name: Which one.
        data: The data set that it was trained on.
        split: What it was scored on, in words.
        score: Mean of the test samples' scores: bits/dim of images (an upper bound of the
            integers'), nats of vectors (minus the log-density).
        standard_error: Of the score, over samples, noise and probes.
        unit: Of both.
        samples: Test samples that were scored.
        steps: Of training.
        command: What trained it.
    """

    name: str
    data: str
    split: str
    score: float
    standard_error: float
    unit: str
    samples: int
    steps: int
    command: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.score:.4f} {self.unit} +- {self.standard_error:.4f} on "
            f"{self.split}, after {self.steps:,} training steps"
        )


def names() -> list[str]:
    """The names of all packaged models."""
    return sorted(path.stem for path in FOLDER.glob("*.pt"))


def find(name: str) -> Path:
    """The file of a packaged model.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in names():
        raise ValueError(f"no pretrained model is called {name}: there are {', '.join(names())}")
    return FOLDER / f"{name}.pt"


def located(run: str) -> str:
    """A path as it is, or where nothing lies there, the file of the packaged model so called."""
    return str(find(run)) if not Path(run).exists() and run in names() else run


def described(name: str) -> PretrainedModel:
    """What is known of a packaged model.

    Raises:
        ValueError: there is none of that name.
        CheckpointError: its file is damaged.
    """
    path = find(name)
    values: Any = read_file(path).get("pretrained")
    try:
        return PretrainedModel(**values)
    except TypeError:
        raise CheckpointError(f"{path} is damaged: it does not say how it was scored") from None
