"""The optimisers, and the learning rate and batch as functions of how far training has come."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer, RMSprop

from iresflow.training.config import TrainingConfig
from iresflow.training.loop.muon import Muon

__all__ = ["OPTIMIZERS", "Schedule", "new_optimizer", "take_up"]

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], TrainingConfig], Optimizer]] = {
    # The second moment of the Residual Flow code; Adamax keeps its paper's.
    "adam": lambda p, c: Adam(
        p, c.learning_rate, betas=(0.9, 0.99), weight_decay=c.weight_decay, fused=True
    ),
    "adamw": lambda p, c: AdamW(
        p, c.learning_rate, betas=(0.9, 0.99), weight_decay=c.weight_decay, fused=True
    ),
    "adamax": lambda p, c: Adamax(p, c.learning_rate, weight_decay=c.weight_decay),
    "sgd": lambda p, c: SGD(p, c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay),
    "muon": lambda p, c: Muon(
        p, c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay
    ),
    # As in Keras, whose examples many papers' convolutional networks were trained with.
    "rmsprop": lambda p, c: RMSprop(
        p, c.learning_rate, alpha=0.9, eps=1e-7, weight_decay=c.weight_decay
    ),
}

LEAST = 2.0**-40
"""What a batch is divided by, at least: no split has as many samples, and drops may underflow."""

ROUNDING = 1e-9
"""By how much a quotient of fractions may fall short of a whole number."""


def new_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> Optimizer:
    """The configured optimiser of the parameters that are trained."""
    trained = [p for p in parameters if p.requires_grad]
    return OPTIMIZERS[config.optimizer](trained, config)


def take_up(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Loads what an optimiser remembers; its options stay those that it was built with.

    Raises:
        ValueError: the state is of an optimiser of other parameters.
    """
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)


@final
@dataclass(frozen=True)
class Schedule:
    """How far training has come, and the learning rate and the size of a batch there.

    With a time limit, the fall of the learning rate ends with whichever comes first, the last step
    or the last minute; without one, all is a function of the step alone.

    Arguments:
        config: The options of training.

    References:
        Don't Decay the Learning Rate, Increase the Batch Size (Smith et al., 2018): the schedule
        ``batch``. https://arxiv.org/abs/1711.00489
    """

    config: TrainingConfig

    def progress(self, step: int, seconds: float) -> float:
        """The part of training that is done after some steps and seconds: 1 at the end."""
        return self._done(step, seconds) / self._whole

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """The learning rate of a step (the first is 0) that begins after some seconds."""
        config = self.config
        rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
        return config.learning_rate * min(1.0, rise, self._fall(self._done(step, seconds)))

    def batch_size(self, step: int, seconds: float = 0.0) -> int:
        """Samples in a step (the first is 0) that begins after some seconds."""
        config = self.config
        grown = config.schedule == "batch"
        factor = self._dropped(self._done(step, seconds)) if grown else 1.0
        return round(config.batch_size / max(factor, LEAST))

    def validates(self, step: int, before: float, after: float) -> bool:
        """Whether a step is followed by a validation.

        Arguments:
            step: Steps that are done.
            before: `progress` before the last of them.
            after: `progress` now.
        """
        every = self.config.validate_every
        if every >= 1:
            return step % every == 0
        return math.floor(before / every + ROUNDING) < math.floor(after / every + ROUNDING)

    @property
    def _whole(self) -> float:
        """All of training, in steps, or where only time is known in its whole."""
        return self.config.steps or 1.0

    def _done(self, step: int, seconds: float) -> float:
        minutes = self.config.minutes
        by_time = 0.0 if minutes is None else self._whole * seconds / (60 * minutes)
        return by_time if self.config.steps is None else max(step, by_time)

    def _fall(self, done: float) -> float:
        config = self.config
        if config.schedule == "steps":
            return self._dropped(done)
        if config.schedule == "batch":
            return 1.0
        span = config.decay_steps if config.decay_steps >= 1 else config.decay_steps * self._whole
        if not span:
            return 1.0
        left = min(1.0, max(0.0, (self._whole - done) / span))
        return left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2

    def _dropped(self, done: float) -> float:
        """The factor of the drops so far."""
        return self.config.drop ** bisect_right(self.config.drops, done / self._whole)
