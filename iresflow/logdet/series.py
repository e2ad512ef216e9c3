"""Truncated power series with Hutchinson's trace estimator (thesis, Algorithm 2)."""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.logdet.base import EXPANSION, Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes
from iresflow.powers import Series
from iresflow.streams import Stream
from iresflow.tensors import dot, norms

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
        probe: Name of their distribution, ``rademacher``, ``gaussian`` or ``orthogonal``.
        tol: Where above 0, each probe of each sample stops by itself, as soon as what it leaves
            out is below this many nats per dimension, if its powers shrink at their slowest rate
            until then: no estimate depends on the other samples of its batch. The truncation bound
            is that of the terms taken.

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

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        v = draw_probes(self.probe, self.probes, linearization.point, generator)
        weights = [((-1.0) ** k, (-1.0) ** k / (k + 1)) for k in range(self.terms)]
        with torch.no_grad():
            image = linearization.jvp(v)
            size, slope = norms(v), norms(image)
            # Term k + 1 is at most |u_k| |J v| / (k + 1), and those after it no more than that
            # times the powers of the rate.
            enough = self.tol * math.prod(v.shape[2:]) / slope if self.tol else None
            sums = linearization.power_sums(v, Series(weights, enough=enough))
            invalid = expands(size, slope) | (sums.growth > EXPANSION)
            values = dot(sums.weighted, image).masked_fill(invalid, torch.nan)  # (K, B)
        bound = linearization.lipschitz
        rest = torch.inf if bound is None else bound / (1 - bound)
        return LogDetEstimate.of_probes(
            values,
            surrogate=linearization.bilinear(sums.neumann, v).mean(0),
            truncation=_times(sums.size * slope, _tails(bound, sums.taken, self.terms)).mean(0),
            gradient_truncation=_times(sums.size / size, rest).amax(0),
            products=sums.taken.mean(0),
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


def _tails(lipschitz: float | None, taken: Tensor, terms: int) -> float | Tensor:
    """`tail_sum` after each number of terms; infinite where no bound is known."""
    if lipschitz is None:
        return torch.inf
    return _table(lipschitz, terms, taken.dtype, taken.device)[taken.long() - 1]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # they outlast the call that first asks for them
def _table(lipschitz: float, terms: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`_tail_sums` on a device, which would be waited for if it got them in every step."""
    return torch.tensor(_tail_sums(lipschitz, terms), dtype=dtype).to(device)


def _tail_sums(lipschitz: float, terms: int) -> list[float]:
    """Those after 1, 2, ... terms: S(n - 1) = L (1 / n + S(n))."""
    sums = [tail_sum(lipschitz, terms)]
    for n in range(terms, 1, -1):
        sums.append(lipschitz * (1 / n + sums[-1]))
    return sums[::-1]


def _times(x: Tensor, factor: float | Tensor) -> Tensor:
    """x times a factor that may be infinite, without 0 times infinity."""
    return torch.where(x == 0, x, x * factor)
