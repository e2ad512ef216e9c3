"""The networks that several of these experiments train, and their objectives."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from experiments.classifiers.noise import WithNoise
from experiments.classifiers.training import train_once
from iresflow import InvertibleClassifier, PowerSeries
from iresflow.data import Dataset
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.base import Objective
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.objectives.independence import Independence
from iresflow.training.sections import Section

__all__ = ["KINDS", "Recipe", "convolutional", "ordinary", "train_kind"]

KINDS = ("cross-entropy", "independence")
"""The two objectives that are compared; `train_kind` knows ``noise`` as well."""


@final
@dataclass(kw_only=True)
class Recipe(Section):
    """How an invertible classifier with a simplified read-out is built and trained."""

    blocks: tuple[int, ...] = (0, 3, 3)
    """Residual blocks on each scale, finest first."""
    hidden: int = 32
    """Channels in the branches."""
    steps: int = 4000
    """Of training."""
    batch_size: int = 128
    """Samples in a step."""
    learning_rate: float = 2e-3
    """Of Adam."""
    nuisance_weight: float = 1.0
    """Weight of the nuisance classifier (independence)."""
    likelihood_weight: float | None = None
    """Weight of the log-likelihood in nats a dimension (independence); null for that of equation
    6.13, the dimension of the nuisance."""
    terms: int = 10
    """Terms of the series of log-determinants in training (independence)."""
    noise: float = 0.5
    """Deviation of normal noise on training images, in units of the pixels' range (noise)."""


def train_kind(
    kind: str,
    recipe: Recipe,
    dataset: Dataset,
    train: Batch,
    held: Batch,
    where: Path,
    seed: int,
) -> InvertibleClassifier:
    """A trained classifier of one kind, from the start or from where its directory has it.

    Arguments:
        kind: ``cross-entropy``, ``independence``, or ``noise``: cross entropy on noisy images.
        recipe: Its sizes.
        dataset: Which classes and grey levels there are.
        train, held: The samples, and those to choose by.
        where: The training's own directory.
        seed: Of weights and order.
    """
    torch.manual_seed(seed)
    net = InvertibleClassifier(
        dataset.shape,
        len(dataset.classes),
        recipe.blocks,
        recipe.hidden,
        pad=0,
        read_out="simplified",
        levels=dataset.levels or 256,
    )
    objective: Objective = CrossEntropy()
    if kind == "independence":
        thesis = float(net.base_dim - net.classes)
        weight = recipe.likelihood_weight
        objective = Independence.of(
            net,
            thesis if weight is None else weight,
            recipe.nuisance_weight,
            log_det=PowerSeries(recipe.terms, tol=1e-2),
        )
    elif kind == "noise":
        objective = WithNoise(objective, recipe.noise)
    train_once(
        net,
        train,
        held,
        where,
        objective=objective,
        seed=seed,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=min(100, recipe.steps // 5),
        validation_samples=500,
        validate_every=0.25,
    )
    return net


def convolutional(shape: tuple[int, ...], classes: int) -> nn.Module:
    """An ordinary convolutional network with ReLU, of another kind than all others here."""
    return nn.Sequential(
        _Scaled(),
        nn.Conv2d(shape[0], 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, classes),
    )


@final
class _Scaled(nn.Module):
    """Floats in [0, 1] to mean 0, about."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def ordinary(
    shape: tuple[int, ...],
    classes: int,
    blocks: tuple[int, ...],
    width: int,
    hidden: int,
    *,
    invertible: bool,
) -> nn.Sequential:
    """A residual network with BatchNorm before each activation (He et al., 2016).

    Arguments:
        shape: (C, H, W) of the images.
        classes: Of the logits.
        blocks: Residual blocks on each scale.
        width: Channels on the first scale.
        hidden: Channels in the branches.
        invertible: Whether scales end by squeezes and channels are padded with zeros, as in the
            invertible networks; or by strided convolutions, which double the channels.
    """
    channels = width
    layers: list[nn.Module] = [_Scaled()]
    layers.append(
        _Pad(width - shape[0]) if invertible else nn.Conv2d(shape[0], width, 3, padding=1)
    )
    for level, count in enumerate(blocks):
        layers += [_NormedBlock(channels, hidden) for _ in range(count)]
        if level < len(blocks) - 1:
            wider = 4 * channels if invertible else 2 * channels
            layers.append(
                nn.PixelUnshuffle(2)
                if invertible
                else nn.Conv2d(channels, wider, 3, stride=2, padding=1)
            )
            channels = wider
    ends = [nn.BatchNorm2d(channels), nn.ELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *ends, nn.Linear(channels, classes))


@final
class _Pad(nn.Module):
    """Appends channels of zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), self.channels, *x.shape[2:])], 1)


@final
class _NormedBlock(nn.Module):
    """x + g(x), g of BatchNorm, ELU and 3 x 3, 1 x 1 and 3 x 3 convolutions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        sizes = [channels, hidden, hidden, channels]
        layers: list[nn.Module] = []
        for depth, kernel in enumerate((3, 1, 3)):
            layers += [
                nn.BatchNorm2d(sizes[depth]),
                nn.ELU(),
                nn.Conv2d(sizes[depth], sizes[depth + 1], kernel, padding=kernel // 2),
            ]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
