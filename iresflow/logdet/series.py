"""Truncated power series with Hutchinson's trace estimator (thesis, Algorithm 2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.logdet.base import LogDetEstimate, LogDetEstimator
from iresflow.tensors import Probe, dot, gaussian, rademacher

__all__ = ["PROBES", "PowerSeries"]

PROBES: dict[str, Probe] = {"rademacher": rademacher, "gaussian": gaussian}
"""Distributions of the probes, by name."""


@final
@dataclass(frozen=True)
class PowerSeries(LogDetEstimator):
    r""":math:`\sum_{k=1}^{n} (-1)^{k+1} v^\top J^k v / k`, averaged over probes v.

    Biased by the truncation; `LogDetEstimate.truncation_bound` bounds the bias. With
    :math:`u_k = (J^\top)^k v`, term k is :math:`u_{k-1}^\top J v / k`, so the value takes n - 1
    vector-Jacobian products and one tangent. The surrogate is :math:`w^\top J v` with the Neumann
    sum :math:`w = \sum_{k=0}^{n-1} (-1)^k u_k` held constant: its gradient is that of the series
    with the same n terms, since :math:`\nabla \operatorname{tr} J^k / k` and
    :math:`\operatorname{tr} J^{k-1} \nabla J` are equal.

    Arguments:
        terms: n, at least 1.
        probes: Number of probes K for each sample.
        distribution: Name of their distribution, ``rademacher`` or ``gaussian``.
        tolerance: Where above 0, terms are added only until the last one is below this many nats
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
    distribution: str = "rademacher"
    tolerance: float = 0.0
    kind: ClassVar[Literal["exact", "biased", "unbiased"]] = "biased"

    def __post_init__(self) -> None:
        if self.terms < 1 or self.probes < 1:
            raise ValueError(
                f"terms and probes must be at least 1, got {self.terms} and {self.probes}"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be 0 or positive, got {self.tolerance}")
        if self.distribution not in PROBES:
            raise ValueError(
                f"unknown distribution {self.distribution!r}; choose one of {', '.join(PROBES)}"
            )

    def __call__(
        self, linearization: Linearization, generator: torch.Generator | None = None
    ) -> LogDetEstimate:
        draw: Callable = PROBES[self.distribution]
        v = draw(self.probes, linearization.point.detach(), generator)
        with torch.no_grad():
            image = linearization.jvp(v)
            enough = self.tolerance * v[0, 0].numel() if self.tolerance else 0.0
            u, taken = v, 1
            neumann, weighted = v.clone(), v.clone()
            while taken < self.terms and not (enough and _last_term(u, image, taken) < enough):
                u = linearization.vjp(u)
                sign = -1 if taken % 2 else 1
                neumann.add_(u, alpha=sign)
                weighted.add_(u, alpha=sign / (taken + 1))
                taken += 1
            values = dot(weighted, image)  # (K, B)
        surrogate = linearization.bilinear(neumann, v).mean(0)
        return LogDetEstimate(
            value=values.mean(0),
            surrogate=surrogate,
            # One probe has no spread: torch gives NaN with a warning, so it is said outright.
            variance=values.var(0) / self.probes if self.probes > 1 else values[0] * torch.nan,
            tail=(_norms(u) * _norms(image)).mean(0),
            tail_order=taken,
        )


def _last_term(u: Tensor, image: Tensor, order: int) -> float:
    """Upper bound, over samples and probes, of the term of this order in nats."""
    return float((_norms(u) * _norms(image)).max()) / order


def _norms(x: Tensor) -> Tensor:
    return dot(x, x).sqrt()
