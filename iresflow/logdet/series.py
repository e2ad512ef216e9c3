"""Truncated power series with Hutchinson's trace estimator (thesis, Algorithm 2)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.logdet.base import EXPANSION, Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes, norms, squared_standard_error
from iresflow.tensors import dot

__all__ = ["PowerSeries", "expands", "tail_sum"]


@final
@dataclass(frozen=True)
class PowerSeries(LogDetEstimator):
    r""":math:`\sum_{k=1}^{n} (-1)^{k+1} v^\top J^k v / k`, averaged over probes v.

    Biased by the truncation. With :math:`u_k = (J^\top)^k v`, term k is
    :math:`u_{k-1}^\top J v / k`, so the value takes n - 1 vector-Jacobian products and one
    tangent. The surrogate is :math:`w^\top J v` with the Neumann sum
    :math:`w = \sum_{k=0}^{n-1} (-1)^k u_k` held constant: its gradient is that of the series
    with the same n terms, since :math:`\nabla \operatorname{tr} J^k / k` and
    :math:`\operatorname{tr} J^{k-1} \nabla J` are equal.

    The truncation bound is that of Theorem 5.8 of the thesis with measured norms in place of their
    worst case :math:`L^n \|v\|^2`: term n + j is :math:`\pm u_{n-1}^\top J^j (J v) / (n + j)`, so
    with :math:`\|J\| \le L < 1` the remainder is at most
    :math:`\|u_{n-1}\| \|J v\| \sum_{j \ge 1} L^j / (n + j)`.

    Arguments:
        terms: n, at least 1.
        probes: Number of probes K for each sample.
        probe: Name of their distribution, ``rademacher`` or ``gaussian``.
        tol: Where above 0, terms are added only until the last one is below this many nats
            per dimension for every sample; the truncation bound is that of the terms taken.

    Raises:
        ValueError: terms or probes below 1, a negative tolerance, or an unknown distribution.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995.
        The gradient as a Neumann series: Residual Flows (Chen et al., 2019), Theorem 2,
        https://arxiv.org/abs/1906.02735.
    """

    terms: int = 10
    probes: int = 1
    probe: str = "rademacher"
    tol: float = 0.0
    kind: ClassVar[Kind] = "biased"

    def __post_init__(self) -> None:
        check_settings(self.probes, self.probe, self.tol, terms=self.terms)

    def estimate(
        self, linearization: Linearization, generator: torch.Generator | None
    ) -> LogDetEstimate:
        v = draw_probes(self.probe, self.probes, linearization.point, generator)
        enough = self.tol * v[0, 0].numel()
        with torch.no_grad():
            image = linearization.jvp(v)
            slope, size, start = norms(image), norms(v), norms(v)
            invalid = expands(start, slope)
            u, taken = v, 1
            neumann, weighted = v.clone(), v.clone()
            while taken < self.terms:
                if enough and float((size * slope).max()) / taken < enough:
                    break
                u = linearization.vjp(u)
                sign = -1 if taken % 2 else 1
                neumann.add_(u, alpha=sign)
                weighted.add_(u, alpha=sign / (taken + 1))
                taken += 1
                before, size = size, norms(u)
                invalid |= expands(before, size)
            values = dot(weighted, image).masked_fill(invalid, torch.nan)  # (K, B)
        bound = linearization.lipschitz
        tail = torch.inf if bound is None else tail_sum(bound, taken)
        rest = torch.inf if bound is None else bound / (1 - bound)
        return LogDetEstimate(
            value=values.mean(0),
            surrogate=linearization.bilinear(neumann, v).mean(0),
            variance=squared_standard_error(values),
            truncation=_times((size * slope).mean(0), tail),
            gradient_truncation=_times((size / start).amax(0), rest),
            products=torch.full_like(values[0], taken),
        )


def expands(before: Tensor, after: Tensor) -> Tensor:
    """Where a product made a vector longer: a proof that J is no contraction.

    Arguments:
        before, after: Norms of a vector and of its product with J or the transpose.
    """
    return after > EXPANSION * before


def tail_sum(lipschitz: float, order: int) -> float:
    """The sum over j >= 1 of L^j / (order + j), from above; L in [0, 1)."""
    total, power, j = 0.0, 1.0, 0
    while True:
        j += 1
        power *= lipschitz
        total += power / (order + j)
        # What is left is at most a geometric series with the next denominator.
        rest = power * lipschitz / ((order + j + 1) * (1 - lipschitz))
        if rest <= 1e-9 * total or j == 100_000:
            return total + rest


def _times(x: Tensor, factor: float) -> Tensor:
    """x times a factor that may be infinite, without 0 times infinity."""
    return torch.where(x == 0, x, x * factor)
