"""The networks of the experiment on frames, trained with and without a penalty of their biases."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from experiments.relu.base import Samples
from experiments.relu.frames.settings import Settings
from experiments.relu.training import Training, train
from iresflow.relu.frames.bias_estimation import (
    InjectivityPenalty,
    estimate_bias,
    share_of_biases,
    share_of_points,
)
from iresflow.relu.networks.network import Layer
from iresflow.relu.networks.parsing import parse_network
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch
from iresflow.training.loop.batches import Samples as LabelledSamples
from iresflow.training.objectives.base import Objective, Score, Terms
from iresflow.training.objectives.classification import CrossEntropy, accuracy

__all__ = ["Trained", "build", "first_layer", "train_network"]

WATCHED = 2000
"""Test points at most whose active rows are counted after each epoch."""


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """One network, and its course.

    Attributes:
        network: In eval mode; its first module is the layer in question.
        accuracy: On the test points, after each epoch, ``(E + 1,)``.
        points: Share of test points with n active rows, likewise.
        biases: Share of biases below alpha*, likewise.
        converged: Share of the epochs whose estimate of alpha* met its stopping rule.
    """

    network: nn.Sequential
    accuracy: np.ndarray
    points: np.ndarray
    biases: np.ndarray
    converged: float


def build(
    settings: Settings, name: str, size: int, redundancy: int, classes: int
) -> nn.Sequential:
    """The networks of the paper's appendix."""
    units = redundancy * size
    if name == "iris" and redundancy < 9:
        return nn.Sequential(
            nn.Linear(size, units), nn.ReLU(), nn.Linear(units, settings.iris_hidden), nn.ReLU(),
            nn.Linear(settings.iris_hidden, classes),
        )  # fmt: skip
    return nn.Sequential(nn.Linear(size, units), nn.ReLU(), nn.Linear(units, classes))


@final
@dataclass(frozen=True, eq=False)
class PenalisedEntropy(Objective):
    """Cross entropy, and a penalty of the first layer's biases (section 4.2 of the paper).

    Arguments:
        penalty: Of alpha, which is minus the bias.
        factor: Of the penalty.
    """

    penalty: InjectivityPenalty
    factor: float

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        terms = CrossEntropy()(model, batch, stream)
        if not self.factor:
            return terms
        assert isinstance(model, nn.Sequential) and isinstance(model[0].bias, Tensor)
        return replace(terms, loss=terms.loss + self.factor * self.penalty(-model[0].bias))

    def evaluate(self, model: nn.Module, split: LabelledSamples) -> Score:
        return CrossEntropy().evaluate(model, split)


def train_network(
    settings: Settings, samples: Samples, redundancy: int, factor: float, index: int
) -> Trained:
    labels, test_labels = samples.labels()
    small = samples.name == "iris"
    count = len(samples.train) if small else settings.image_samples
    inputs, labels = samples.train.flatten(1)[:count], labels[:count]
    test = samples.test.flatten(1)
    training = Training(
        epochs=settings.iris_epochs if small else settings.image_epochs,
        batch_size=settings.iris_batch_size if small else settings.image_batch_size,
        learning_rate=settings.iris_learning_rate if small else settings.image_learning_rate,
        seed=settings.seed + index,
    )
    torch.manual_seed(settings.seed + index)
    size = inputs.shape[1]
    network = build(settings, samples.name, size, redundancy, len(samples.classes))
    layer = network[0]
    assert isinstance(layer, nn.Linear)
    penalty = InjectivityPenalty(layer.out_features)
    stream = torch.Generator().manual_seed(settings.seed + index)
    course: list[tuple[float, float, float]] = []
    converged: list[bool] = []

    def watch(module: nn.Module) -> None:
        first = first_layer(module)
        estimate = estimate_bias(
            first,
            inputs,
            sigma=settings.sigma,
            patience=settings.iris_patience if small else settings.image_patience,
            max_samples=settings.iris_max_points if small else settings.image_max_points,
            generator=stream,
            progress=False,
        )
        penalty.update(estimate.alpha)
        converged.append(estimate.converged)
        course.append((
            accuracy(module, test, test_labels),
            share_of_points(first, test[:WATCHED]),
            share_of_biases(-first.affine.bias, estimate.alpha),
        ))  # fmt: skip

    title = f"{samples.name} m/n = {redundancy}{', penalised' if factor else ''}"
    objective = PenalisedEntropy(penalty, factor)
    train(network, inputs, labels, objective, training, title=title, after_epoch=watch)
    numbers = np.array(course).T
    return Trained(network, *numbers, float(np.mean(converged)))


def first_layer(network: nn.Module) -> Layer:
    assert isinstance(network, nn.Sequential)
    return parse_network(network[:2]).layers[0]
