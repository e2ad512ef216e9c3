"""Steps whose loss or gradient is not finite, kept out of the weights.

A step leaves its numbers on the device. To read them at once is free on a CPU; on a GPU the host
would wait for the whole step, and the GPU then for the host. There they are read one step later,
while the next one is computed: a bad step, and all behind it, change no weight, and training stops
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

__all__ = ["Deferred", "Guard", "Immediate", "Step", "guard_for"]


@final
@dataclass(frozen=True)
class Step:
    """What is known of a step.

    Attributes:
        number: Steps that were done before it.
        numbers: Loss, log-density of the latent and log-determinant, means over the batch; how
            many processes have been interrupted, or are out of time; and the gradient's norm.
    """

    number: int
    numbers: tuple[float, ...]

    @property
    def loss(self) -> float:
        return self.numbers[0]

    @property
    def interrupted(self) -> bool:
        return self.numbers[3] > 0

    @property
    def out_of_time(self) -> bool:
        return self.numbers[4] > 0

    @property
    def norm(self) -> float:
        return self.numbers[5]

    @property
    def finite(self) -> bool:
        """Whether the step may change the weights."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Guard(ABC):
    """Lets steps pass that are finite, and tells what became of each."""

    @abstractmethod
    def admit(self, number: int, numbers: Tensor, optimizer: Optimizer) -> list[Step]:
        """Looks at a step whose gradient stands, before the optimiser moves the weights.

        Arguments:
            number: Of the step.
            numbers: Of a `Step`, on the device.
            optimizer: Whose gradients they are.

        Returns:
            Steps that are known from now on. Where one of them is not finite, the weights are
            those before it, if the optimiser is not called any more.
        """

    @abstractmethod
    def settle(self) -> list[Step]:
        """The steps that are not known yet; the host waits for them."""


@final
class Immediate(Guard):
    """Reads each step at once."""

    def admit(self, number: int, numbers: Tensor, optimizer: Optimizer) -> list[Step]:
        return [Step(number, tuple(numbers.tolist()))]

    def settle(self) -> list[Step]:
        return []


@final
class Deferred(Guard):
    """Reads each step while the next one is computed.

    From a bad step on, gradients and the optimiser's momentum are set to zero on the device, so
    that no weight moves. For optimisers that move weights by a multiple of their momentum
    ``exp_avg``, as Adam and Adamax do.

    Arguments:
        device: Of the weights.
    """

    def __init__(self, device: torch.device) -> None:
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._pending: tuple[int, Tensor, torch.Event | None] | None = None

    def admit(self, number: int, numbers: Tensor, optimizer: Optimizer) -> list[Step]:
        self._sound &= numbers[0].isfinite() & numbers[-1].isfinite()
        self._hold(optimizer)
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

    def _hold(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        # Not by a product: NaN times zero is NaN.
        flat = torch.cat([g.reshape(-1) for g in gradients])
        put_back(gradients, torch.where(self._sound, flat, 0))
        momenta = [s["exp_avg"] for s in optimizer.state.values() if "exp_avg" in s]
        if momenta:
            torch._foreach_mul_(momenta, self._sound.to(momenta[0].dtype))


def guard_for(device: torch.device) -> Guard:
    """What costs least on a device, of those that copy without being waited for."""
    return Deferred(device) if device.type == "cuda" else Immediate()


def put_back(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Writes the entries of one long vector to the tensors whose entries it holds, in order."""
    parts = flat.split([t.numel() for t in tensors])
    torch._foreach_copy_(
        list(tensors), [p.view(t.shape) for p, t in zip(parts, tensors, strict=True)]
    )


def _copied(numbers: Tensor) -> tuple[Tensor, torch.Event | None]:
    """The numbers on the host, and the event behind which they are there."""
    if numbers.device.type == "cpu":
        return numbers.clone(), None
    copied = numbers.to("cpu", non_blocking=True)
    event = torch.Event(numbers.device)
    event.record()
    return copied, event
