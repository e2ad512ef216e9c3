"""The settings of the experiment on frames."""

from dataclasses import dataclass
from typing import Literal

from experiments.relu.frames.data import SCALINGS
from experiments.runner import capped
from iresflow.training.sections import Section

__all__ = ["Settings", "quick"]


@dataclass(kw_only=True)
class Settings(Section):
    """Frames."""

    seed: int = 0
    """Seed of weights, order, noise and the flowers to test on."""
    redundancies: tuple[int, ...] = (2, 3, 9)
    """Rows over columns of the first layer (figure 2)."""
    enforced: int = 2
    """The redundancy at which the penalty is tried, one of them (figures 3 to 5, table 1)."""
    penalty: float = 1.0
    """Factor of the penalty in the objective."""
    sigma: float = 0.1
    """Standard deviation of the noise of randomised smoothing."""
    iris_dimensions: int = 3
    """Principal components of Iris that are kept, 4 for all."""
    iris_hidden: int = 27
    """Units of Iris' second layer; it has none at redundancy 9."""
    iris_runs: int = 10
    """Networks for each curve of Iris."""
    iris_epochs: int = 100
    """Passes over the flowers."""
    iris_batch_size: int = 16
    """Flowers in a step."""
    iris_learning_rate: float = 0.01
    """Of Adam."""
    iris_patience: int = 1000
    """Points for which alpha* has to stay the same."""
    iris_max_points: int = 50_000
    """Points at most that an estimate of alpha* draws."""
    image_scaling: Literal["deviation", "norm"] = "norm"
    """What is 1: the deviation of all pixels, or the norm of each image."""
    image_samples: int = 10_000
    """Training images."""
    image_epochs: int = 6
    """Passes over the images."""
    image_batch_size: int = 128
    """Images in a step."""
    image_learning_rate: float = 0.01
    """Of Adam."""
    image_patience: int = 20
    """Points for which alpha* has to stay the same."""
    image_max_points: int = 2048
    """Points at most that an estimate of alpha* draws."""
    points: int = 300
    """Test images whose active rows are decomposed and reconstructed from."""

    def __post_init__(self) -> None:
        if self.enforced not in self.redundancies:
            raise ValueError(
                f"enforced={self.enforced}; allowed is one of redundancies={self.redundancies}"
            )
        if not 1 <= self.iris_dimensions <= 4:
            raise ValueError(f"iris_dimensions={self.iris_dimensions}; allowed is 1 to 4")
        if self.image_scaling not in SCALINGS:
            allowed = ", ".join(SCALINGS)
            raise ValueError(f"image_scaling={self.image_scaling!r}; allowed are {allowed}")
        for name in ("iris_runs", "points", "image_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; allowed is 1 or more")


def quick(settings: Settings) -> Settings:
    """Settings for a run within a minute."""
    small = {"iris_runs": 2, "iris_epochs": 20, "image_samples": 1500, "image_epochs": 2}
    return capped(settings, **small, image_max_points=256, points=16)
