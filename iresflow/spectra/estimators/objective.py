"""What networks on spectra are trained by: cross entropy in which classes can have weights."""

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.errors import NonFiniteError
from iresflow.spectra.networks.layers import shifted
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Score, Terms
from iresflow.training.objectives.classification import class_numbers, predict, score_of

__all__ = ["SCORED", "WeightedCrossEntropy"]

SCORED = 64
"""Spectra that are scored at a time: maps of long spectra take much memory."""


@final
@dataclass(frozen=True)
class WeightedCrossEntropy(Objective):
    """The mean over samples of the weight of their class times their cross entropy, in nats.

    Shifts and dropout draw from the stream of the step, so training repeats.

    Arguments:
        weights: One for each class.
        shift: Standard deviation, in bins, by which each spectrum is moved in each step.
    """

    weights: tuple[float, ...]
    shift: float = 0.0

    def unit(self, model: nn.Module) -> str:
        return "cross_entropy"

    @property
    def shown(self) -> tuple[str, ...]:
        return ("accuracy",)

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        values = shifted(batch.values, self.shift, stream)
        logits, labels = model(values, stream), class_numbers(batch)
        right = (logits.detach().argmax(1) == labels).to(logits.dtype).mean()
        return Terms(self._loss(logits, labels), {"accuracy": right})

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        logits = predict(model, split.values, SCORED).double()
        labels = class_numbers(split).to(logits.device)
        loss = float(self._loss(logits, labels))
        if loss != loss:
            raise NonFiniteError("the model gives NaN")
        return Score(loss, {"accuracy": score_of(logits, labels).logged["accuracy"]})

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        """Sets the unit of the intensities by the training samples."""
        standardized = getattr(model, "standardized", None)
        if standardized is not None:
            standardized.initialize(split.values)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (logits.new_tensor(self.weights)[labels] * losses).mean()
