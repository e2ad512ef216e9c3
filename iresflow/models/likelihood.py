"""Log-likelihoods and what is known of their error."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from iresflow.logdet import LogDetEstimate
from iresflow.streams import KeyedStream, fresh_seed
from iresflow.tensors import widest

__all__ = [
    "BlockLikelihood",
    "Likelihood",
    "arithmetic_error",
    "pooled_degrees",
    "sample_stream",
    "student_quantile",
]

ROUNDING = 8.0
"""What is allowed for a likelihood's arithmetic, in units of eps for each dimension."""


@final
@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods with what is known of their error, for a batch of B samples.

    Attributes:
        log_prob: ``(B,)`` nats.
        variance: ``(B,)`` squared nats, the squared standard error over the probes; zero where
            nothing was estimated, NaN with one probe, which tells nothing of it.
        degrees: ``(B,)``, degrees of freedom of `variance`; infinite where it is exact.
        truncation_bound: ``(B,)`` nats, upper bound of what truncation left out; infinite in
            training mode, where no Lipschitz bound is certified.
        rounding: ``(B,)`` nats, what the arithmetic is expected to have changed at most. A model
            of it, no proof.
    """

    log_prob: Tensor
    variance: Tensor
    degrees: Tensor
    truncation_bound: Tensor
    rounding: Tensor

    @property
    def standard_error(self) -> Tensor:
        """Standard error over the probes, ``(B,)`` nats."""
        return self.variance.sqrt()

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper ends ``(B,)`` of intervals that hold the exact log-likelihoods.

        Each does with a probability of `level`: so many standard errors of Student's t, and the
        bounds of truncation and rounding on top. Errors of different samples are independent.
        Infinite where the probes tell nothing of the error, as a single one, or random series, and
        where a log-likelihood has left the range of its float type: the exact one may be anywhere
        then.

        Raises:
            ValueError: the level is not strictly between 0 and 1.
        """
        half = self.half_width(level)
        middle = torch.where(self.log_prob.isinf(), 0, self.log_prob)  # inf - inf is no number
        return middle - half, middle + half

    def half_width(self, level: float = 0.95) -> Tensor:
        """Half of the width ``(B,)`` of such an interval, in nats.

        Errors: as `interval`.
        """
        drawn = student_quantile(level, self.degrees) * self.standard_error
        half = drawn.nan_to_num(nan=math.inf) + self.truncation_bound + self.rounding
        return torch.where(self.log_prob.isinf(), math.inf, half)

    def mean(self) -> "Likelihood":
        """The mean over the samples, as a batch of one: an estimate of these samples' exact mean.

        Its errors are those of the computation. That the samples are a choice out of many is
        another one, which their spread shows.
        """
        n = len(self.log_prob)
        return Likelihood(
            self.log_prob.mean(0, keepdim=True),
            self.variance.sum(0, keepdim=True) / n**2,
            pooled_degrees(self.variance, self.degrees)[None],
            self.truncation_bound.mean(0, keepdim=True),
            self.rounding.mean(0, keepdim=True),
        )


@final
@dataclass(frozen=True)
class BlockLikelihood:
    """Log-likelihoods of B samples with the estimates of log-determinants that they contain.

    Attributes:
        log_prob: ``(B,)`` nats.
        estimates: Of the blocks, by independent probes.
        rounding: ``(B,)`` nats, as of `Likelihood`.
    """

    log_prob: Tensor
    estimates: Sequence[LogDetEstimate]
    rounding: Tensor

    def total(self) -> Likelihood:
        """The log-likelihoods with the errors of all blocks together."""
        return self._summed(self.log_prob, self.estimates, self.rounding)

    def ratio_to(self, other: "BlockLikelihood") -> Likelihood:
        """The logarithm of the ratio to the likelihoods of the same samples, by the same probes.

        What is common to the errors of both cancels, see `LogDetEstimate.minus`.

        Arguments:
            other: With the same blocks and probes.
        """
        pairs = zip(self.estimates, other.estimates, strict=True)
        return self._summed(
            self.log_prob - other.log_prob,
            [mine.minus(theirs) for mine, theirs in pairs],
            self.rounding + other.rounding,
        )

    @staticmethod
    def _summed(
        log_prob: Tensor, estimates: Sequence[LogDetEstimate], rounding: Tensor
    ) -> Likelihood:
        nothing = torch.zeros_like(log_prob)[None]
        variances = torch.cat([nothing, *(e.variance[None] for e in estimates)])
        degrees = torch.full_like(variances, math.inf)
        for row, estimate in zip(degrees[1:], estimates, strict=True):
            row.fill_(estimate.degrees)
        truncations = torch.cat([nothing, *(e.truncation[None] for e in estimates)])
        return Likelihood(
            log_prob,
            variances.sum(0),
            pooled_degrees(variances, degrees),
            truncations.sum(0),
            rounding,
        )


def arithmetic_error(log_prob: Tensor, noise: Tensor, dim: int) -> Tensor:
    """What rounding is expected to change at most, ``(B,)`` nats: a model of it, no proof.

    Arguments:
        log_prob: ``(B,)`` nats.
        noise: ``(B,)`` nats, the log-density of noise that was taken off.
        dim: Of a sample.
    """
    return ROUNDING * torch.finfo(log_prob.dtype).eps * (dim + log_prob.abs() + noise.abs())


def sample_stream(
    contents: Iterable[Tensor | None], generator: torch.Generator | None, seed: int | None
) -> KeyedStream:
    """A random stream for each sample, a function of a seed and of what the sample consists of.

    Arguments:
        contents: Parts of the samples, ``(B, *event)`` each, or None.
        generator: Where a seed is drawn from if none is given; None for torch's global stream.
        seed: Any integer, or None.

    Raises:
        ValueError: both a generator and a seed.
    """
    if seed is not None and generator is not None:
        raise ValueError("a seed and a generator were given, of which one is enough")
    if seed is None:
        seed = fresh_seed(generator)
    parts = [part for part in contents if part is not None]
    # Widened, so that a number is the same sample in each type of float that holds it.
    wide = (p.to(widest(p.device)) if p.is_floating_point() else p for p in parts)
    return KeyedStream.of_samples(seed, *wide)


def pooled_degrees(variances: Tensor, degrees: Tensor) -> Tensor:
    r"""Degrees of freedom of a sum of independent variances, ``(N, ...)`` to ``(...)``.

    :math:`(\sum_i v_i)^2 / \sum_i v_i^2 / d_i` (Welch, 1947; Satterthwaite, 1946): at least the
    smallest :math:`d_i`, at most their sum. Infinite where all variances are zero, NaN where one
    of them is.
    """
    total = variances.sum(0)
    # Scaled, so that squares of small variances don't underflow.
    shares = variances / torch.where(total > 0, total, 1)
    return 1 / (shares.square() / degrees.clamp_min(torch.finfo(degrees.dtype).tiny)).sum(0)


def student_quantile(level: float, degrees: Tensor) -> Tensor:
    """The t for which a Student variable lies within -t and t with a probability of `level`.

    Arguments:
        level: In (0, 1).
        degrees: Degrees of freedom; infinite for the normal distribution.

    Raises:
        ValueError: the level is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    from scipy.special import ndtri, stdtrit  # slow to import, for those who ask for intervals

    d = degrees.detach().cpu().double().numpy()
    many = 1e9
    upper = (1 + level) / 2
    t = np.where(d > many, ndtri(upper), stdtrit(np.minimum(d, many), upper))
    return torch.from_numpy(t).to(degrees)
