"""Random streams of batches, and of parts of batches.

A batch may be computed in parts: by several processes, or one part after another. The numbers that
a part draws must then be those that the whole batch would have drawn for its samples. A
`PartialStream` sees to it: each part draws for the whole batch and keeps its own rows. That costs
the drawing once more for each part, which is little beside a convolution, and nothing needs to be
sent between processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

__all__ = ["PartialStream", "Sampler", "Stream", "draw"]


@final
@dataclass(frozen=True)
class PartialStream:
    """The random stream of a batch, for some consecutive samples of it.

    Arguments:
        generator: The stream of the whole batch, in the same state for each part.
        whole: Samples in the whole batch.
        first: The first sample of the part.
    """

    generator: torch.Generator
    whole: int
    first: int

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self.generator.device


Stream = torch.Generator | PartialStream
"""What numbers may be drawn from, for a batch or for a part of one."""


class Sampler(Protocol):
    """Draws independent numbers of a shape, as `torch.rand` does."""

    def __call__(self, size: tuple[int, ...], *, generator: torch.Generator | None) -> Tensor: ...


def draw(sampler: Sampler, size: Sequence[int], stream: Stream | None, *, batch: int) -> Tensor:
    """Independent numbers of a shape, one of whose dimensions counts the samples of a batch.

    Arguments:
        sampler: Draws the numbers.
        size: The shape of what is returned.
        stream: Where from; None for torch's global stream.
        batch: The dimension of the samples.
    """
    if not isinstance(stream, PartialStream):
        return sampler(tuple(size), generator=stream)
    whole = list(size)
    whole[batch] = stream.whole
    drawn = sampler(tuple(whole), generator=stream.generator)
    return drawn.narrow(batch, stream.first, size[batch]).contiguous()
