"""One short training loop for the small networks of this wing's experiments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop
from tqdm import tqdm

from iresflow.errors import NonFiniteError

__all__ = ["Loss", "Training", "accuracy", "classification_loss", "fit", "predict"]

Loss = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
"""The loss of a module on a batch, a scalar: the batch is one slice of each tensor of the data."""

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    # As in Keras, whose example the papers trained their convolutional networks with.
    "rmsprop": partial(RMSprop, alpha=0.9, eps=1e-7),
}


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
        for name in ("batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.epochs < 0:
            raise ValueError(f"epochs must be 0 or more, got {self.epochs}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}; allowed are {', '.join(OPTIMIZERS)}")


def fit(
    module: nn.Module,
    data: Sequence[Tensor],
    loss: Loss,
    training: Training,
    *,
    title: str = "training",
    after_epoch: Callable[[int], None] | None = None,
) -> list[float]:
    """Trains a module in place, and leaves it in eval mode.

    Arguments:
        module: What to train.
        data: Tensors of N samples each, such as images and labels.
        loss: Of the module on a batch; it may draw from torch's global random stream.
        training: How.
        title: Of the progress bar.
        after_epoch: Called with the number of epochs done, before the first (0) and behind each,
            with the module in eval mode.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: data of different lengths, or none.
        NonFiniteError: the loss is not finite.
    """
    count = _common_length(data)
    optimizer = OPTIMIZERS[training.optimizer](module.parameters(), lr=training.learning_rate)
    stream = torch.Generator().manual_seed(training.seed)
    means: list[float] = []
    bar = tqdm(
        total=training.epochs * -(-count // training.batch_size),
        desc=title,
        unit="step",
        dynamic_ncols=True,
    )
    with bar:
        for epoch in range(training.epochs + 1):
            module.eval()
            if after_epoch is not None:
                after_epoch(epoch)
            if epoch == training.epochs:
                break
            module.train()
            total = 0.0
            for index in torch.randperm(count, generator=stream).split(training.batch_size):
                optimizer.zero_grad(set_to_none=True)
                value = loss(module, tuple(part[index] for part in data))
                if not bool(torch.isfinite(value)):
                    raise NonFiniteError(
                        f"{title}: the loss is {float(value.detach())} in epoch {epoch + 1}; try "
                        "a smaller learning rate"
                    )
                value.backward()
                optimizer.step()
                total += float(value.detach()) * len(index)
                bar.update()
            means.append(total / count)
            bar.set_postfix_str(f"loss {means[-1]:.4f}")
    return means


def classification_loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross entropy of the module's logits ``(B, classes)`` on a batch of inputs and labels."""
    inputs, labels = batch
    return F.cross_entropy(module(inputs), labels)


@torch.no_grad()
def predict(module: nn.Module, inputs: Tensor, batch_size: int = 1000) -> Tensor:
    """The module's outputs for inputs ``(N, *event)``, batch by batch, without a graph."""
    return torch.cat([module(part) for part in inputs.split(batch_size)])


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of inputs ``(N, *event)`` whose largest logit is that of their label ``(N,)``."""
    return float((predict(module, inputs).argmax(1) == labels).double().mean())


def _common_length(data: Sequence[Tensor]) -> int:
    lengths = {len(part) for part in data}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"data has tensors of {sorted(lengths)} samples; allowed is one length")
    return lengths.pop()
