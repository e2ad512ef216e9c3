"""Bits per dimension of images, and what is known of their error."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.models.likelihood import Likelihood, student_quantile

__all__ = ["BitsPerDim"]


@final
@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of a batch of N images under a model.

    Attributes:
        likelihood: Of the dequantised images, in nats.
        dim: D, entries of an image.
        levels: Grey levels of the integer images.
    """

    likelihood: Likelihood
    dim: int
    levels: int

    @property
    def values(self) -> Tensor:
        """``(N,)``, one for each image."""
        return math.log2(self.levels) - self.likelihood.log_prob / self._nats

    @property
    def probe_variance(self) -> Tensor:
        """``(N,)`` squared bits/dim, the squared standard error over the probes."""
        return self.likelihood.variance / self._nats**2

    @property
    def truncation_bounds(self) -> Tensor:
        """``(N,)`` bits/dim, upper bound of what truncated series left out."""
        return self.likelihood.truncation_bound / self._nats

    @property
    def rounding(self) -> Tensor:
        """``(N,)`` bits/dim, what the arithmetic is expected to have changed at most."""
        return self.likelihood.rounding / self._nats

    def intervals(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper ends ``(N,)`` for each image, given its draw of dequantisation noise.

        As `Likelihood.interval`.
        """
        low, high = self.likelihood.interval(level)
        return (
            math.log2(self.levels) - high / self._nats,
            math.log2(self.levels) - low / self._nats,
        )

    @property
    def mean(self) -> float:
        """Mean over the images, in bits/dim."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` as an estimate of the expectation over images, in bits/dim.

        The spread of the values holds all that varies from image to image: the image itself, its
        dequantisation noise and its probes. NaN for a single image.
        """
        if len(self.values) < 2:
            return math.nan
        return float(self.values.std() / len(self.values) ** 0.5)

    @property
    def probe_error(self) -> float:
        """Standard error of `mean` from the probes alone, in bits/dim."""
        return float(self.likelihood.mean().standard_error) / self._nats

    @property
    def truncation_bound(self) -> float:
        """Upper bound of the truncation error of `mean`, in bits/dim."""
        return float(self.truncation_bounds.mean())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Lower and upper end for the expectation over images, of which `mean` is an estimate.

        By Student's t for the spread of the values, with the bounds of truncation and rounding on
        top. Infinite for a single image.

        Raises:
            ValueError: the level is not strictly between 0 and 1.
        """
        degrees = torch.tensor(len(self.values) - 1.0, dtype=torch.float64)
        drawn = float(student_quantile(level, degrees)) * self.standard_error
        rest = self.truncation_bound + float(self.rounding.mean())
        half = math.inf if math.isnan(self.standard_error) else drawn + rest
        return self.mean - half, self.mean + half

    @property
    def _nats(self) -> float:
        """Nats in one bit/dim."""
        return self.dim * math.log(2)
