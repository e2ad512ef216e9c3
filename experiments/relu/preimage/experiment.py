"""The experiment `experiments.relu.preimage`: its settings, and what it measures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from experiments.relu.base import Report, Samples
from experiments.relu.networks import mlp
from experiments.relu.preimage.attacks import attack_first_layer
from experiments.relu.preimage.circles import draw_circles
from experiments.relu.preimage.kinds import count_kinds
from experiments.relu.training import Training, train
from experiments.runner import capped
from iresflow.training.objectives.classification import CrossEntropy, accuracy
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "mnist"}}


@dataclass(kw_only=True)
class Settings(Section):
    """Preimages."""

    seed: int = 0
    """Seed of weights, order and choices."""
    resolution: int = 100
    """Points along each side of the plane (thesis, figure 3.1)."""
    hidden: tuple[int, ...] = (3500, 784)
    """Hidden layers of the network whose first layer's preimages are classified (table 2)."""
    epochs: int = 2
    """Passes over the data of its training; the paper has 25, in batches of 1000."""
    batch_size: int = 200
    """Samples in a step of it."""
    samples: int = 250
    """Test images whose preimage is classified."""
    attacked: tuple[int, ...] = (100,) * 10
    """Hidden layers of the network that is attacked (table 1)."""
    attacked_epochs: int = 25
    """Passes over the data of its training (appendix A4)."""
    attacked_batch_size: int = 1000
    """Samples in a step of it (appendix A4)."""
    originals: int = 4
    """Images that are attacked."""
    targets: int = 3
    """Targets for each of them."""
    train_samples: int | None = None
    """Images to train on; null for all."""


def quick(settings: Settings) -> Settings:
    """Within a minute."""
    attacked = {"attacked_epochs": 5, "attacked_batch_size": 100, "originals": 2, "targets": 2}
    trained = {"hidden": 1800, "epochs": 2, "batch_size": 100, "train_samples": 4000}
    return capped(settings, resolution=40, samples=20, **trained, **attacked)


def run(settings: Settings, data: Mapping[str, Samples], report: Report) -> None:
    """Runs the experiments, one after the other."""
    images = data["images"]
    images.labels()  # raises before anything is computed
    draw_circles(report, settings.resolution, settings.seed)
    rows = []
    training = Training(
        epochs=settings.attacked_epochs,
        batch_size=settings.attacked_batch_size,
        seed=settings.seed,
    )
    attacked = _trained(images, settings.attacked, training, settings.train_samples, rows)
    counts = {"originals": settings.originals, "targets": settings.targets}
    attack_first_layer(report, attacked, images, **counts)
    training = replace(training, epochs=settings.epochs, batch_size=settings.batch_size)
    wide = _trained(images, settings.hidden, training, settings.train_samples, rows)
    report.table("networks", rows, "The trained networks.")
    count_kinds(report, wide, images, samples=settings.samples, seed=settings.seed)


def _trained(
    images: Samples,
    hidden: tuple[int, ...],
    training: Training,
    count: int | None,
    rows: list[dict[str, object]],
) -> nn.Sequential:
    train_labels, test_labels = images.labels()
    torch.manual_seed(training.seed)
    module = mlp((math.prod(images.train.shape[1:]), *hidden, len(images.classes)))
    count = count or len(images.train)
    widths = "-".join(map(str, hidden))
    x, labels = images.train[:count], train_labels[:count]
    losses = train(module, x, labels, CrossEntropy(), training, title=f"training {widths}")
    rows.append(
        {
            "hidden layers": widths,
            "epochs": training.epochs,
            "batch size": training.batch_size,
            "images": len(x),
            "training loss": losses[-1] if losses else None,
            "test accuracy": accuracy(module, images.test, test_labels),
        }
    )
    return module
