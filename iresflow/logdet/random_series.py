"""The randomly truncated power series: unbiased, at the price of variance."""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from iresflow.linearization import Linearization
from iresflow.logdet.base import EXPANSION, Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.lengths import LengthDistribution, Poisson
from iresflow.logdet.probes import check_settings, draw_probes
from iresflow.logdet.series import expands
from iresflow.powers import Series
from iresflow.streams import Stream
from iresflow.tensors import dot, norms

__all__ = ["RandomSeries"]


@final
@dataclass(frozen=True)
class RandomSeries(LogDetEstimator):
    r"""The power series with a random number of terms, each divided by its probability.

    With N of a distribution, independent for each probe of each sample, and e exact terms, term
    :math:`k > e` is taken if :math:`N \ge k - e`, and divided by :math:`P(N \ge k - e)`: the
    "Russian roulette", without bias. The surrogate weights the Neumann series alike. Samples
    whose series has ended cost nothing any more, so the mean number of products is e + E[N].

    Arguments:
        distribution: Of N.
        exact_terms: e, at least 1.
        probes: Number of probes K for each sample.
        probe: Name of their distribution, ``rademacher``, ``gaussian`` or ``orthogonal``.

    Raises:
        ValueError: exact_terms or probes below 1, or an unknown distribution.

    Its estimates claim no variance, so likelihoods have no error bars: with `Poisson` lengths the
    variance is infinite for almost any J, and with `Geometric` ones unless :math:`L^2 < 1 - p`,
    since :math:`L^{2k} / P(N \ge k)` add up. Where it is finite, few draws show too little of it:
    for J = -I / 2, p = 0.02 and four probes, intervals by their spread hold 29 % instead of 95 %.
    It is for training; `Krylov` and `PowerSeries` are for likelihoods.

    References:
        Residual Flows (Chen et al., 2019), Theorems 1 and 2, https://arxiv.org/abs/1906.02735.
        There one N is drawn for a whole batch; its noise does not average out over the batch.
    """

    distribution: LengthDistribution = Poisson(2.0)
    exact_terms: int = 2
    probes: int = 1
    probe: str = "rademacher"
    kind: ClassVar[Kind] = "unbiased"

    def __post_init__(self) -> None:
        check_settings(self.probes, self.probe, exact_terms=self.exact_terms)

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        v = draw_probes(self.probe, self.probes, linearization.point, generator)
        with torch.no_grad():
            lengths = self.distribution.draw(tuple(v.shape[:2]), generator)
            lengths = lengths.to(v.device, non_blocking=True)
            image = linearization.jvp(v)
            weights = _weights(self.distribution, self.exact_terms)
            sums = linearization.power_sums(v, Series(weights, self.exact_terms + lengths))
            invalid = expands(norms(v), norms(image)) | (sums.growth > EXPANSION)
            values = dot(sums.weighted, image).masked_fill(invalid, torch.nan)
        # Without a contraction the series need not converge, and nothing is unbiased.
        known = 0.0 if linearization.lipschitz is not None else torch.inf
        truncation = torch.full_like(values[0], known)
        estimate = LogDetEstimate.of_probes(
            values,
            surrogate=linearization.bilinear(sums.neumann, v).mean(0),
            truncation=truncation,
            gradient_truncation=truncation,
            products=(self.exact_terms + lengths).to(v.dtype).mean(0),
        )
        # The spread of some draws tells nothing of the long series that are none of them.
        return replace(estimate, variance=torch.full_like(truncation, torch.nan))


@functools.lru_cache(maxsize=64)
def _weights(
    distribution: LengthDistribution, exact_terms: int
) -> tuple[tuple[float, float], ...]:
    """Of the powers in the Neumann series and in that of the logarithm."""
    divisors = [1.0] * exact_terms + distribution.tails()[1:].tolist()
    signs = [(-1) ** k / divisor for k, divisor in enumerate(divisors)]
    return tuple((sign, sign / (k + 1)) for k, sign in enumerate(signs))
