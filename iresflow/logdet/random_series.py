"""The randomly truncated power series: unbiased, at the price of variance."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.linearization import Linearization, Products
from iresflow.logdet.base import Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.lengths import LengthDistribution, Poisson
from iresflow.logdet.probes import (
    check_settings,
    draw_probes,
    norms,
    spread,
    squared_standard_error,
)
from iresflow.logdet.series import expands
from iresflow.streams import Stream
from iresflow.tensors import dot

__all__ = ["RandomSeries"]


SHRINK = 0.3
"""Share of a batch that must have ended before it leaves: leaving copies the slopes, for about a
fifth of the cost of a product."""


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
        probe: Name of their distribution, ``rademacher`` or ``gaussian``.

    Raises:
        ValueError: exact_terms or probes below 1, or an unknown distribution.

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
            lengths = self.distribution.draw(tuple(v.shape[:2]), generator).to(v.device)
            image = linearization.jvp(v)
            neumann, weighted, invalid = self._sums(linearization, v, self.exact_terms + lengths)
            invalid |= expands(norms(v), norms(image))
            values = dot(weighted, image).masked_fill(invalid, torch.nan)
        # Without a contraction the series need not converge, and nothing is unbiased.
        known = 0.0 if linearization.lipschitz is not None else torch.inf
        truncation = torch.full_like(values[0], known)
        return LogDetEstimate(
            value=values.mean(0),
            surrogate=linearization.bilinear(neumann, v).mean(0),
            variance=squared_standard_error(values),
            truncation=truncation,
            gradient_truncation=truncation,
            products=(self.exact_terms + lengths).to(v.dtype).mean(0),
        )

    def _sums(self, products: Products, v: Tensor, terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Neumann sum and series sum, ``(K, B, *event)``, and where J was seen to expand.

        Arguments:
            products: With J.
            v: Probes ``(K, B, *event)``.
            terms: The number of terms of each, ``(K, B)``.
        """
        survival = self.distribution.survival()
        neumann, weighted = v.clone(), v.clone()
        invalid = torch.zeros_like(terms, dtype=torch.bool)
        index = torch.arange(v.shape[1], device=v.device)
        u = v
        for taken in range(1, int(terms.max())):
            alive = terms[:, index] > taken
            running = alive.any(0).nonzero()[:, 0]
            if len(index) - len(running) >= SHRINK * len(index):
                index, u, products = index[running], u[:, running], products.narrow(running)
                alive = alive[:, running]
            before = norms(u)
            u = products.vjp(u)
            invalid[:, index] |= alive & expands(before, norms(u))
            extra = taken + 1 - self.exact_terms
            weight = 1.0 if extra <= 0 else 1 / float(survival[extra])
            part = u * spread(alive * (-weight if taken % 2 else weight), u)
            neumann[:, index] += part
            weighted[:, index] += part / (taken + 1)
        return neumann, weighted, invalid
