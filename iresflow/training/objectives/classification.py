"""The objective of classifiers: cross entropy."""

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.errors import NonFiniteError
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Score, Terms

__all__ = ["CrossEntropy", "accuracy", "predict"]


@final
@dataclass(frozen=True)
class CrossEntropy(Objective):
    """The cross entropy of logits ``(B, classes)``, in nats, with class numbers ``(B,)``."""

    def unit(self, model: nn.Module) -> str:
        return "cross_entropy"

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        logits, labels = model(batch.values), _labels(batch)
        right = (logits.detach().argmax(1) == labels).to(logits.dtype).mean()
        return Terms(F.cross_entropy(logits, labels), {"accuracy": right})

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        logits = predict(model, split.values)
        labels = _labels(split).to(logits.device)
        losses = F.cross_entropy(logits.double(), labels, reduction="none")
        if bool(losses.isnan().any()):
            raise NonFiniteError("the model gives NaN")
        right = (logits.argmax(1) == labels).double().mean()
        error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
        return Score(float(losses.mean()), {"accuracy": float(right), "standard_error": error})


@torch.no_grad()
def predict(module: nn.Module, inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """The module's outputs for inputs ``(N, *event)``, batch by batch, without a graph."""
    device = next((p.device for p in module.parameters()), inputs.device)
    return torch.cat([module(part.to(device)) for part in inputs.split(batch_size)])


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of inputs ``(N, *event)`` whose largest logit is that of their label ``(N,)``."""
    said = predict(module, inputs).argmax(1)
    return float((said == labels.to(said.device)).double().mean())


def _labels(samples: Samples) -> Tensor:
    if samples.labels is None:
        raise ValueError("cross entropy needs the class number of each sample, and got no labels")
    return samples.labels
