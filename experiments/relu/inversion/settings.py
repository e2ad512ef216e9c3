"""The settings of the experiment on inversion."""

from dataclasses import dataclass, replace

from experiments.runner import capped
from iresflow.relu.inversion.layer_programs import InfinityNorm, LayerMethod, OneNorm, Relaxed
from iresflow.training.sections import Section

__all__ = ["METHODS", "Settings", "quick"]

METHODS: tuple[LayerMethod, ...] = (InfinityNorm(), OneNorm(), Relaxed())


@dataclass(kw_only=True)
class Settings(Section):
    """Inversion."""

    seed: int = 0
    """Seed of networks, codes and noise."""
    hidden: tuple[int, ...] = (250, 600)
    """Widths of the random networks' layers, from the code on."""
    latent: int = 20
    """Dimension of the code, in random networks and in the decoder."""
    latents: tuple[int, ...] = (10, 30, 50, 70, 90, 110)
    """Dimensions that are timed (table 1)."""
    timed: int = 3
    """Problems of each that are timed."""
    expansions: tuple[float, ...] = (1.5, 2.0, 2.25, 2.5, 3.0, 4.0)
    """Widths over the widths before, for exact recovery without noise."""
    recoveries: int = 40
    """Networks of each expansion."""
    noises: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    """Half widths of uniform, and deviations of Gaussian noise (figure 5)."""
    trials: int = 5
    """Problems of each noise."""
    descent_steps: int = 500
    """Steps of the baseline at most."""
    descent_rate: float = 0.05
    """Learning rate of the baseline (Adam)."""
    decoder: tuple[int, ...] = (60,)
    """Hidden units of the decoder."""
    slope: float = 0.2
    """Negative slope of its layers, 0 for ReLU."""
    epochs: int = 6
    """Passes over the images of its training."""
    train_samples: int | None = None
    """Images to train on; null for all."""
    picture_noise: float = 0.1
    """Deviation of the noise in the pictures of recovered digits."""
    pictures: int = 8
    """Digits that are shown."""

    def __post_init__(self) -> None:
        for name in ("timed", "recoveries", "trials", "pictures", "descent_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; allowed is 1 or more")


def quick(settings: Settings) -> Settings:
    """Within a minute."""
    problems = {"latent": 10, "timed": 2, "recoveries": 5, "trials": 3, "descent_steps": 200}
    return replace(
        capped(settings, **problems, epochs=4, train_samples=6000, pictures=5),
        hidden=tuple(min(pair) for pair in zip(settings.hidden, (60, 150), strict=False)),
        latents=tuple(k for k in settings.latents if k <= 30),
        noises=settings.noises[:3],
    )
