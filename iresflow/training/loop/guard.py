"""Steps whose loss or gradient is not finite, kept out of the weights.

A step leaves its numbers on the device. To read them at once is free on a CPU; on a GPU the host
would wait for the whole step, and the GPU then for the host. There they are read one step later,
while the next one is computed: a bad step, and all after it, change no weight, and training stops
one step late, naming the right one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.optim import Optimizer

from iresflow.tensors import mark_written

__all__ = ["Deferred", "Guard", "Immediate", "Step", "guard_for", "put_back"]


@final
@dataclass(frozen=True)
class Step:
    """What is known of a step.

    Attributes:
        number: Steps that were done before it.
        numbers: The loss, what else is logged of it, means over the batch; how many processes have
            been interrupted; the seconds of training so far; and the gradient's norm.
    """

    number: int
    numbers: tuple[float, ...]

    @property
    def loss(self) -> float:
        return self.numbers[0]

    @property
    def interrupted(self) -> bool:
        return self.numbers[-3] > 0

    @property
    def seconds(self) -> float:
        return self.numbers[-2]

    @property
    def norm(self) -> float:
        return self.numbers[-1]

    @property
    def fault(self) -> str | None:
        """What is not finite, in words; None where the step may change the weights."""
        if not math.isfinite(self.loss):
            return f"the loss is {self.loss}"
        return None if math.isfinite(self.norm) else f"the gradient's norm is {self.norm}"


class Guard(ABC):
    """Lets steps pass that are finite, and tells what became of each."""

    @abstractmethod
    def step(self, number: int, numbers: Tensor, optimizer: Optimizer) -> list[Step]:
        """Lets the optimiser move the weights by the gradient that stands, if it is finite.

        Arguments:
            number: Of the step.
            numbers: Of a `Step`, on the device.
            optimizer: Whose gradients they are.

        Returns:
            Steps that are known from now on. Where one of them is not finite, the weights are
            those before it, and stay so.
        """

    @abstractmethod
    def settle(self) -> list[Step]:
        """The steps that are not known yet; the host waits for them."""


@final
class Immediate(Guard):
    """Reads each step at once."""

    def step(self, number: int, numbers: Tensor, optimizer: Optimizer) -> list[Step]:
        known = Step(number, tuple(numbers.tolist()))
        if known.fault is None:
            optimizer.step()
            mark_written(p for group in optimizer.param_groups for p in group["params"])
        return [known]

    def settle(self) -> list[Step]:
        return []


@final
class Deferred(Guard):
    """Reads each step while the next one is computed.

    From a bad step on, the weights are put back on the device after each step of the optimiser,
    whichever that is.

    Arguments:
        device: Of the weights.
    """

    def __init__(self, device: torch.device) -> None:
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._pending: tuple[int, Tensor, torch.Event | None] | None = None

    def step(self, number: int, numbers: Tensor, optimizer: Optimizer) -> list[Step]:
        self._sound &= numbers[0].isfinite() & numbers[-1].isfinite()
        weights = [p.detach() for group in optimizer.param_groups for p in group["params"]]
        before = _flat(weights)
        optimizer.step()
        # Not by a product: NaN times zero is NaN.
        for group, old, new in zip(_by_type(weights), before, _flat(weights), strict=True):
            put_back(group, torch.where(self._sound, new, old))
        mark_written(weights)
        known = self.settle()
        self._pending = (number, *_copied(numbers))
        return known

    def settle(self) -> list[Step]:
        if self._pending is None:
            return []
        number, numbers, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        return [Step(number, tuple(numbers.tolist()))]


def guard_for(device: torch.device) -> Guard:
    """What costs least on a device, of those that copy without being waited for."""
    return Deferred(device) if device.type == "cuda" else Immediate()


def put_back(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Writes the entries of one long vector to the tensors whose entries it holds, in order."""
    parts = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_(
        list(tensors), [p.view(t.shape) for p, t in zip(parts, tensors, strict=True)]
    )


def _by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    dtypes = dict.fromkeys(t.dtype for t in tensors)
    return [[t for t in tensors if t.dtype == dtype] for dtype in dtypes]


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One long vector for each type."""
    return [torch.cat([t.reshape(-1) for t in group]) for group in _by_type(tensors)]


def _copied(numbers: Tensor) -> tuple[Tensor, torch.Event | None]:
    """The numbers on the host, and the event after which they are there."""
    if numbers.device.type == "cpu":
        return numbers.clone(), None
    copied = numbers.to("cpu", non_blocking=True)
    event = torch.Event(numbers.device)
    event.record()
    return copied, event
