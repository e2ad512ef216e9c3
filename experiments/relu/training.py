"""How the small networks of these experiments are trained: by the package's loop, in epochs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor, nn

from iresflow import fit
from iresflow.training.objectives.base import Objective

__all__ = ["Training", "train"]


@final
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained.

    Arguments:
        epochs: Passes over the data.
        batch_size: Samples in a step.
        optimizer: ``adam`` or ``rmsprop``.
        learning_rate: Of the optimiser, constant.
        seed: Of the order of the samples.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["adam", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(
                f"epochs must be 0 or more, and batch_size 1 or more, got {self.epochs} and "
                f"{self.batch_size}"
            )


def train(
    module: nn.Module,
    x: Tensor,
    labels: Tensor | None,
    objective: Objective,
    training: Training,
    *,
    title: str = "training",
    after_epoch: Callable[[nn.Module], None] | None = None,
) -> list[float]:
    """Trains a module in place to its last weights, and leaves it in eval mode.

    Arguments:
        module: What to train.
        x: ``(N, *event)``.
        labels: ``(N,)``, or None.
        objective: What is minimised.
        training: How.
        title: Of the progress bar.
        after_epoch: Called before the first epoch and after each, with the module in eval mode.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: settings out of range, or data of different lengths.
        NonFiniteError: the loss is not finite.
    """
    module.eval()
    if after_epoch is not None:
        after_epoch(module)
    if training.epochs == 0:
        return []
    per_epoch = max(1, len(x) // training.batch_size)
    steps = training.epochs * per_epoch

    def watch(step: int, model: nn.Module, score: object) -> None:
        if after_epoch is not None:
            after_epoch(model)

    fitted = fit(
        module,
        x,
        labels,
        validation=None,
        objective=objective,
        seed=training.seed,
        on_validation=watch,
        title=title,
        steps=steps,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        warmup_steps=0,
        decay_steps=0,
        clip_norm=None,
        ema_decay=0.0,
        validate_every=per_epoch if after_epoch else steps,
        log_every=per_epoch,
    )
    loss = f"train/{objective.unit(module)}"
    return [float(row[loss]) for row in fitted.history if loss in row]
