"""Objectives on images with normal noise, which bounds what a single pixel says of the class."""

from dataclasses import dataclass
from typing import final

from torch import nn

from iresflow.streams import NORMAL, Stream, draw
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Ready, Score, Terms
from iresflow.training.objectives.classification import classifier_of

__all__ = ["WithNoise"]


@final
@dataclass(frozen=True, eq=False)
class WithNoise(Objective):
    r"""An objective of an invertible classifier, trained on images with normal noise.

    Of two images at the distance d, noise of deviation :math:`\sigma` leaves
    :math:`d^2 / (2 \sigma^2)` nats of evidence for one against the other. So a cue of few pixels
    is no longer certain, and what is spread over many pixels counts beside it. Scores are of
    images without noise.

    Arguments:
        base: The objective.
        deviation: Of the noise, in units of the pixels' range; 0 or more.

    Raises:
        ValueError: a negative deviation.
    """

    base: Objective
    deviation: float

    def __post_init__(self) -> None:
        if not self.deviation >= 0:
            raise ValueError(f"the deviation of noise must be 0 or more, got {self.deviation}")

    @property
    def own(self) -> nn.Module:
        return self.base.own

    @property
    def shown(self) -> tuple[str, ...]:
        return self.base.shown

    def unit(self, model: nn.Module) -> str:
        return self.base.unit(model)

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        x = classifier_of(model).prepare(batch.values)
        noise = draw(NORMAL, x.shape, stream, batch=0, device=x.device, dtype=x.dtype)
        return self.base(model, Batch(x + self.deviation * noise, batch.labels), stream)

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        return self.base.evaluate(model, split)

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        self.base.initialize(model, split, seed)

    def make_ready(self, model: nn.Module) -> Ready:
        return self.base.make_ready(model)
