"""Distributions of the number of terms of a randomly truncated series."""

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.streams import UNIFORM, Stream, draw

__all__ = ["Geometric", "LengthDistribution", "Poisson"]

LONGEST = 512
"""Draws are cut here; the rest of the distributions is below what a random float resolves."""


class LengthDistribution(ABC):
    """A distribution of N = 0, 1, 2, ..."""

    @abstractmethod
    def survival(self) -> Tensor:
        """P(N >= k) for k = 0, 1, ... as long as it is above the smallest random float."""

    @final
    def tails(self) -> Tensor:
        """`survival`, computed once; not to be changed."""
        return _tails(self)

    @final
    def draw(self, size: tuple[int, ...], generator: Stream | None) -> Tensor:
        """Independent draws ``(..., B)``, int64, on the generator's device (the CPU for None)."""
        device = torch.device("cpu") if generator is None else generator.device
        u = draw(UNIFORM, size, generator, batch=-1, device=device, dtype=torch.float64)
        # N >= k if u lies below P(N >= k), for one u and all k: the inverse of the distribution.
        rising = _rising(self, device)
        return torch.searchsorted(rising, u, right=True).neg().add(len(rising))


@final
@dataclass(frozen=True)
class Poisson(LengthDistribution):
    """The Poisson distribution (Chen et al., 2019, appendix E: rate 2).

    Arguments:
        rate: Its mean, above 0 and at most 100.

    Raises:
        ValueError: rate out of range.
    """

    rate: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 100:
            raise ValueError(f"rate must lie in (0, 100], got {self.rate}")

    def survival(self) -> Tensor:
        # Upwards for the probabilities, downwards for their sums: no difference of near equals,
        # which 1 minus the distribution function would be.
        probabilities = [math.exp(-self.rate)]
        for k in range(1, LONGEST):
            probabilities.append(probabilities[-1] * self.rate / k)
        tails = torch.tensor(probabilities, dtype=torch.float64).flip(0).cumsum(0).flip(0)
        return _resolved(tails)


@final
@dataclass(frozen=True)
class Geometric(LengthDistribution):
    """The geometric distribution from 0: P(N >= k) = (1 - p)^k.

    Arguments:
        p: In (0, 1).

    Raises:
        ValueError: p out of range.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p must lie strictly between 0 and 1, got {self.p}")

    def survival(self) -> Tensor:
        return _resolved((1 - self.p) ** torch.arange(LONGEST, dtype=torch.float64))


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _tails(distribution: LengthDistribution) -> Tensor:
    return distribution.survival()


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # they outlast the call that first asks for them
def _rising(distribution: LengthDistribution, device: torch.device) -> Tensor:
    """P(N >= k) for k = ..., 2, 1; a device that gets it in every step would be waited for."""
    return distribution.tails()[1:].flip(0).to(device)


def _resolved(tails: Tensor) -> Tensor:
    tails[0] = 1.0
    return tails[tails > torch.finfo(torch.float64).eps / 2]
