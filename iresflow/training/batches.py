"""Batches of a split, in an order and with random streams that depend on seed and step alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.data import Split
from iresflow.streams import PartialStream, Stream

__all__ = [
    "Batches",
    "Placement",
    "Resident",
    "Share",
    "Streamed",
    "placement_for",
    "random_stream",
]

RESIDENT_SHARE = 0.25
"""The part of a GPU's free memory that data may take: the rest is for what training computes."""


def random_stream(seed: int, step: int, purpose: int, device: torch.device) -> torch.Generator:
    """The random stream of one step for one purpose.

    Streams depend on seed, step and purpose alone, so a resumed run draws what the uninterrupted
    one would have drawn, and nothing of them needs to be stored.
    """
    mixed = ((seed * 1_000_003 + step) * 8 + purpose) % 2**63
    return torch.Generator(device).manual_seed(mixed)


@final
@dataclass(frozen=True)
class Share:
    """Consecutive samples of a batch, that are computed together.

    Arguments:
        whole: Samples in the batch.
        first: The first one of the share.
        size: Samples in the share.
    """

    whole: int
    first: int
    size: int

    @staticmethod
    def split(whole: int, parts: int) -> list["Share"]:
        """As many shares as asked for, in order, whose sizes differ by one at most.

        Raises:
            ValueError: there are fewer samples than parts.
        """
        if whole < parts:
            raise ValueError(
                f"a batch of {whole} can't be split in {parts}: training.batch_size counts the "
                "samples of a step over all processes, and needs one at least for each process "
                "and each of training.accumulate"
            )
        ends = [whole * i // parts for i in range(parts + 1)]
        return [Share(whole, a, b - a) for a, b in zip(ends, ends[1:], strict=False)]

    @property
    def rows(self) -> slice:
        """Where the share lies in the batch."""
        return slice(self.first, self.first + self.size)

    @property
    def weight(self) -> float:
        """What the share's mean counts in the mean of the batch."""
        return self.size / self.whole

    def stream(self, generator: torch.Generator) -> Stream:
        """The batch's stream for this share."""
        if self.size == self.whole:
            return generator
        return PartialStream(generator, self.whole, self.first)


class Placement(ABC):
    """Where a split's values lie, and how samples of it come to the device.

    Arguments:
        values: ``(N, *event)``, on the CPU.
        device: Where the samples shall come.
    """

    @abstractmethod
    def __init__(self, values: Tensor, device: torch.device) -> None: ...

    @property
    @abstractmethod
    def home(self) -> torch.device:
        """Where the values lie."""

    @abstractmethod
    def take(self, index: Tensor) -> Tensor:
        """Samples on the device, by their numbers ``(B,)``, which lie where the values do."""


@final
class Resident(Placement):
    """All values on the device, as they are stored: images in one byte a pixel."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self._values = values.to(device)

    @property
    def home(self) -> torch.device:
        return self._values.device

    def take(self, index: Tensor) -> Tensor:
        return self._values[index]


@final
class Streamed(Placement):
    """All values on the host; samples are gathered there and copied while the device computes."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self._values = values
        self._device = device

    @property
    def home(self) -> torch.device:
        return self._values.device

    def take(self, index: Tensor) -> Tensor:
        samples = self._values[index]
        if self._device.type == "cuda":
            # Only from pinned memory does the copy run beside the host.
            samples = samples.pin_memory()
        return samples.to(self._device, non_blocking=True)


def placement_for(values: Tensor, device: torch.device) -> type[Placement]:
    """Resident where that takes a quarter of a GPU's free memory at most, else streamed.

    On other devices there is nothing to choose: their memory is the host's.
    """
    if device.type != "cuda":
        return Resident
    free, _ = torch.cuda.mem_get_info(device)
    return Resident if values.nbytes <= RESIDENT_SHARE * free else Streamed


@final
@dataclass(frozen=True)
class Batches:
    """Batches of a split in a shuffled order, each a function of the seed and the step alone.

    Arguments:
        split: The samples.
        size: Samples in a batch; smaller splits give smaller batches.
        seed: Of the order.
        device: Where the batches shall be.
        flip: Whether images are mirrored with probability 1/2.
        placement: Where the samples are kept; None for what `placement_for` chooses.
    """

    split: Split
    size: int
    seed: int
    device: torch.device
    flip: bool = False
    placement: type[Placement] | None = None

    @property
    def count(self) -> int:
        """Samples in each batch."""
        return min(self.size, len(self.split))

    def from_step(
        self, step: int, rows: slice = slice(None)
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches of the steps ``step``, ``step + 1``, ... without end: values and labels.

        Arguments:
            step: Of the first batch.
            rows: The samples of each batch that are wanted.
        """
        per_epoch = len(self.split) // self.count
        placement = self.placement or placement_for(self.split.values, self.device)
        values = placement(self.split.values, self.device)
        labels = self.split.labels
        classes = None if labels is None else placement(labels, self.device)
        epoch, order = -1, torch.empty(0)
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                stream = random_stream(self.seed, epoch, 0, torch.device("cpu"))
                order = torch.randperm(len(self.split), generator=stream).to(values.home)
            first = step % per_epoch * self.count
            index = order[first : first + self.count][rows]
            batch = values.take(index)
            if self.flip:
                stream = random_stream(self.seed, step, 1, self.device)
                mirrored = torch.rand(self.count, generator=stream, device=self.device) < 0.5
                batch = torch.where(mirrored[rows].view(-1, 1, 1, 1), batch.flip(-1), batch)
            yield batch, None if classes is None else classes.take(index)
            step += 1
