"""The objective of classifiers: cross entropy."""

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.errors import NonFiniteError
from iresflow.models import Flow, InvertibleClassifier
from iresflow.models.certified import CertifiedModel
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Album, Objective, Ready, Score, Terms, stored
from iresflow.training.objectives.certified import certified_ready, initialize_once

__all__ = [
    "Classification",
    "CrossEntropy",
    "accuracy",
    "class_numbers",
    "classifier_of",
    "predict",
    "require_made_for",
    "score_of",
    "share_right",
]

INITIALIZATION_SAMPLES = 512
"""Samples from which ActNorm is initialised, at most: more than a batch."""


class Classification(Objective):
    """What the objectives of classifiers have in common."""

    @property
    def shown(self) -> tuple[str, ...]:
        return ("accuracy",)

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        """From random samples, for an invertible classifier that has seen no data before.

        Raises:
            ValueError: a flow gives no logits.
        """
        if isinstance(model, Flow):
            raise ValueError(
                f"cross entropy is of logits, and a {type(model).__name__} gives none: a flow of "
                "classes is trained by Generative()"
            )
        if not isinstance(model, InvertibleClassifier):
            return
        net, device = model, next(model.parameters()).device

        def start(batch: Batch) -> None:
            net.initialize(batch.values.to(device))

        initialize_once(net, split, seed, INITIALIZATION_SAMPLES, start)

    def make_ready(self, model: nn.Module) -> Ready:
        """As the base; the norms of a certified model are enforced."""
        if isinstance(model, CertifiedModel):
            return certified_ready(model)
        return Ready({"model": stored(model)})

    def illustrate(self, model: nn.Module, split: Samples, album: Album) -> None:
        if isinstance(model, InvertibleClassifier):
            from iresflow.training.runs.pictures import draw_classifier  # plots cost a second

            draw_classifier(model, split, album)


@final
@dataclass(frozen=True)
class CrossEntropy(Classification):
    """The cross entropy of logits ``(B, classes)``, in nats, with class numbers ``(B,)``."""

    def unit(self, model: nn.Module) -> str:
        return "cross_entropy"

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        logits, labels = model(batch.values), class_numbers(batch)
        return Terms(F.cross_entropy(logits, labels), {"accuracy": share_right(logits, labels)})

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        return score_of(predict(model, split.values), class_numbers(split))


def score_of(logits: Tensor, labels: Tensor) -> Score:
    """The mean cross entropy ``(N, classes)`` with ``(N,)`` in nats, and the accuracy.

    Raises:
        NonFiniteError: a logit is NaN.
    """
    labels = labels.to(logits.device)
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    if bool(losses.isnan().any()):
        raise NonFiniteError("the model gives NaN")
    right = (logits.argmax(1) == labels).double().mean()
    error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
    return Score(float(losses.mean()), {"accuracy": float(right), "standard_error": error})


def share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of logits ``(B, classes)`` whose largest is that of their label, a scalar."""
    return (logits.detach().argmax(1) == labels).to(logits.dtype).mean()


@torch.no_grad()
def predict(module: nn.Module, inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """The module's outputs for inputs ``(N, *event)``, batch by batch, without a graph."""
    device = next((p.device for p in module.parameters()), inputs.device)
    return torch.cat([module(part.to(device)) for part in inputs.split(batch_size)])


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of inputs ``(N, *event)`` whose largest logit is that of their label ``(N,)``."""
    said = predict(module, inputs).argmax(1)
    return float((said == labels.to(said.device)).double().mean())


def classifier_of(model: nn.Module) -> InvertibleClassifier:
    """The model, if it is an invertible classifier.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(model, InvertibleClassifier):
        raise ValueError(
            f"this objective trains an InvertibleClassifier, got a {type(model).__name__}"
        )
    return model


def require_made_for(net: InvertibleClassifier, dim: int, classes: int) -> None:
    """Checks that what an objective trains of its own is of this classifier's sizes.

    Raises:
        ValueError: it is of another one's.
    """
    if (net.base_dim, net.classes) != (dim, classes):
        raise ValueError(
            f"the objective was made for a classifier with {dim} entries of the latent and "
            f"{classes} classes, and this one has {net.base_dim} and {net.classes}: make a new "
            "one for it"
        )


def class_numbers(samples: Samples) -> Tensor:
    """The labels ``(N,)`` of samples.

    Raises:
        ValueError: there are none.
    """
    if samples.labels is None:
        raise ValueError("cross entropy needs the class number of each sample, and got no labels")
    return samples.labels
