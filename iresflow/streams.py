"""Random streams of batches, of parts of batches, and of samples.

A batch may be computed in parts: by several processes, or one part after another. The numbers that
a part draws must then be those that the whole batch would have drawn for its samples. A
`PartialStream` sees to it: each part draws for the whole batch and keeps its own rows. That costs
the drawing once more for each part, which is little beside a convolution, and nothing needs to be
sent between processes.

Where a model is evaluated, numbers belong to samples instead of places: a `KeyedStream` draws the
same for a sample in whatever batch it comes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from iresflow.counters import (
    Words,
    bits,
    digest,
    key_of_seed,
    mix,
    normal,
    subkeys,
    uniform,
    words,
)

__all__ = [
    "BITS",
    "NORMAL",
    "UNIFORM",
    "Distribution",
    "KeyedStream",
    "PartialStream",
    "Sampler",
    "Stream",
    "draw",
    "fresh_seed",
]


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


@final
class KeyedStream:
    """A random stream for each sample, or one that all samples share.

    What is drawn for a sample is a function of its key and of the number of draws before, so it
    depends on no other sample, and on no device or number of threads.

    Arguments:
        keys: int64, ``(B,)`` for a batch of B samples, or ``(1,)`` for numbers that all samples of
            any batch have in common.
    """

    def __init__(self, keys: Tensor) -> None:
        self._keys = keys
        self._draws = 0

    @staticmethod
    def common(seed: int, device: torch.device) -> "KeyedStream":
        """The stream that all samples share, a function of the seed."""
        return KeyedStream(key_of_seed(seed, device))

    @staticmethod
    def of_samples(seed: int, *contents: Tensor) -> "KeyedStream":
        """A stream for each sample, a function of the seed and of all that the sample consists of.

        Samples of the same content share their numbers, all others are independent.

        Arguments:
            seed: Any integer.
            contents: ``(B, *event)`` integers, or floats of 32 or 64 bits.
        """
        content = digest(*contents)
        return KeyedStream(mix(content ^ key_of_seed(seed, content.device)))

    @property
    def device(self) -> torch.device:
        """Where the numbers are drawn."""
        return self._keys.device

    def words(self, count: int) -> Tensor:
        """The next draw: random words ``(B, count)`` or ``(1, count)``, one row a key."""
        self._draws += 1
        return words(subkeys(self._keys, self._draws), count)


Stream = torch.Generator | PartialStream | KeyedStream
"""What numbers may be drawn from: for a batch, for a part of one, or for each sample."""


class Sampler(Protocol):
    """Draws independent numbers of a shape, as `torch.rand` does."""

    def __call__(
        self,
        size: tuple[int, ...],
        *,
        generator: torch.Generator | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tensor: ...


@final
@dataclass(frozen=True)
class Distribution:
    """A distribution of independent numbers.

    Attributes:
        from_generator: Draws them from a generator of PyTorch.
        from_words: Draws ``(N, count)`` of a type from random words.
    """

    from_generator: Sampler
    from_words: Callable[[Words, int, torch.dtype], Tensor]


def _bits(
    size: tuple[int, ...],
    *,
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    return torch.randint(0, 2, size, generator=generator, device=device, dtype=dtype)


UNIFORM = Distribution(torch.rand, uniform)
"""Floats, uniform in [0, 1)."""

NORMAL = Distribution(torch.randn, normal)
"""Floats of mean 0 and variance 1, normally distributed."""

BITS = Distribution(_bits, bits)
"""Zeros and ones, equally likely."""


def draw(
    distribution: Distribution,
    size: Sequence[int],
    stream: Stream | None,
    *,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Independent numbers of a shape, one of whose dimensions counts the samples of a batch.

    Arguments:
        distribution: Of the numbers.
        size: The shape of what is returned.
        stream: Where from; None for torch's global stream.
        batch: The dimension of the samples.
        device: Of what is returned; that of the stream, if there is one.
        dtype: Of what is returned.

    Raises:
        ValueError: the stream is one of another number of samples.
    """
    if isinstance(stream, KeyedStream):
        return _draw_keyed(distribution, list(size), stream, batch, dtype)
    sampler = distribution.from_generator
    if not isinstance(stream, PartialStream):
        return sampler(tuple(size), generator=stream, device=device, dtype=dtype)
    whole = list(size)
    whole[batch] = stream.whole
    drawn = sampler(tuple(whole), generator=stream.generator, device=device, dtype=dtype)
    return drawn.narrow(batch, stream.first, size[batch]).contiguous()


def _draw_keyed(
    distribution: Distribution,
    size: list[int],
    stream: KeyedStream,
    batch: int,
    dtype: torch.dtype,
) -> Tensor:
    batch %= len(size)
    each = size[:batch] + size[batch + 1 :]
    drawn = distribution.from_words(stream.words, math.prod(each), dtype)
    if len(drawn) not in (1, size[batch]):
        raise ValueError(f"a stream of {len(drawn)} samples draws for no batch of {size[batch]}")
    return drawn.reshape(-1, *each).movedim(0, batch).expand(size).contiguous()


def fresh_seed(generator: torch.Generator | None) -> int:
    """A random seed of 63 bits, from a generator or from torch's global stream."""
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
