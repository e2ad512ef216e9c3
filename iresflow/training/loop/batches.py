"""Batches of a split, in an order and with random streams that depend on seed and step alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from iresflow.data.ahead import ahead
from iresflow.data.images.augment import Augmentation, unchanged
from iresflow.streams import PartialStream, Stream

__all__ = ["Batch", "Batches", "Samples", "Share", "random_stream", "seed_of"]

LARGE = 2**30
"""Bytes of values of which batches are made ahead of the steps."""

RESIDENT_SHARE = 0.25
"""The part of a GPU's free memory that data may take: the rest is for what training computes."""


class Samples(Protocol):
    """Samples with or without labels, such as a split of a data set, or a batch of one.

    Attributes:
        values: ``(N, *event)``, of any type.
        labels: ``(N, *any)``: class numbers, contexts, targets; None for none.
    """

    @property
    def values(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor | None: ...

    def __len__(self) -> int: ...


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples, as an objective gets them.

    Arguments:
        values: ``(N, *event)``.
        labels: ``(N, *any)``, or None.
    """

    values: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)

    @staticmethod
    def of(samples: Samples, rows: slice | Tensor) -> "Batch":
        """Some of the samples, by their places."""
        labels = samples.labels
        return Batch(samples.values[rows], None if labels is None else labels[rows])


def random_stream(seed: int, step: int, purpose: int, device: torch.device) -> torch.Generator:
    """The random stream of one step for one purpose.

    Streams depend on seed, step and purpose alone, so a resumed run draws what the uninterrupted
    one would have drawn, and nothing of them needs to be stored.
    """
    return torch.Generator(device).manual_seed(seed_of(seed, step, purpose))


def seed_of(seed: int, step: int, purpose: int) -> int:
    """Of the random stream of one step for one purpose."""
    return ((seed * 1_000_003 + step) * 8 + purpose) % 2**63


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


@final
@dataclass(frozen=True)
class Batches:
    """Batches of a split in a shuffled order, each a function of the seed and the step alone.

    Where a GPU has room, the whole split lies on it; else samples are gathered on the host and
    copied while the GPU computes.

    Arguments:
        split: The samples.
        size: Samples in a batch; smaller splits give smaller batches.
        seed: Of the order.
        device: Where the batches shall be.
        augment: The random changes of each sample, one after another.
    """

    split: Samples
    size: int
    seed: int
    device: torch.device
    augment: tuple[Augmentation, ...] = ()

    @property
    def count(self) -> int:
        """Samples in each batch."""
        return min(self.size, len(self.split))

    @property
    def unchanged(self) -> Batch:
        """The split without random changes."""
        return Batch(unchanged(self.split.values, self.augment), self.split.labels)

    @property
    def per_epoch(self) -> int:
        """Batches in a pass over the split; what is left over is in other batches next time."""
        return len(self.split) // self.count

    def from_step(self, step: int, rows: slice = slice(None)) -> Iterator[Batch]:
        """The batches of the steps ``step``, ``step + 1``, ... without end.

        Those of a large split are got ready while others are computed with, since it may lie on
        a disk.

        Arguments:
            step: Of the first batch.
            rows: The samples of each batch that are wanted.
        """
        batches = self._from_step(step, rows)
        return ahead(batches) if self.split.values.nbytes >= LARGE else batches

    def _from_step(self, step: int, rows: slice) -> Iterator[Batch]:
        split = _placed(self.split, self.device)
        epoch, order = -1, torch.empty(0)
        while True:
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                stream = random_stream(self.seed, epoch, 0, torch.device("cpu"))
                order = torch.randperm(len(self.split), generator=stream).to(split.values.device)
            first = step % self.per_epoch * self.count
            index = order[first : first + self.count][rows]
            chosen = Batch.of(split, index)
            batch = Batch(
                _copied(chosen.values, self.device),
                None if chosen.labels is None else _copied(chosen.labels, self.device),
            )
            yield self._changed(batch, step, rows) if self.augment else batch
            step += 1

    def _changed(self, batch: Batch, step: int, rows: slice) -> Batch:
        generator = random_stream(self.seed, step, 1, self.device)
        stream = PartialStream(generator, self.count, rows.start or 0)
        values = batch.values
        for change in self.augment:
            values = change(values, stream)
        return Batch(values, batch.labels)


def _placed(split: Samples, device: torch.device) -> Samples:
    """The samples on the device, or where they are if they would fill a GPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if split.values.nbytes > RESIDENT_SHARE * free:
            return split
    labels = split.labels
    return Batch(split.values.to(device), None if labels is None else labels.to(device))


def _copied(samples: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and samples.device.type == "cpu":
        # Only from pinned memory does the copy run beside the host.
        samples = samples.pin_memory()
    return samples.to(device, non_blocking=True)
