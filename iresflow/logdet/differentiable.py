"""A truncated power series whose gradient is that of its own values."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from iresflow.linearization import Linearization
from iresflow.logdet.base import Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes
from iresflow.logdet.series import expands, tail_sum
from iresflow.streams import Stream
from iresflow.tensors import dot, norms

__all__ = ["DifferentiableSeries"]


@final
@dataclass(frozen=True)
class DifferentiableSeries(LogDetEstimator):
    r""":math:`\sum_{k=1}^{n} c_k v^\top J^k v` with :math:`c_k = (-1)^{k+1} / k`, averaged over v.

    The values are those of `PowerSeries`. Its surrogate is another one: with
    :math:`u_i = (J^\top)^i v` and :math:`p_j = J^j v`, the derivative of the series with *these*
    probes is

    .. math:: \sum_{i + j < n} c_{i+j+1}\, u_i^\top (dJ)\, p_j,

    so with common probes the gradient is that of one function, as optimisers with a line search
    and Hamiltonian samplers need. `PowerSeries` and `Krylov` take
    :math:`\sum_i c'_i\, u_i^\top (dJ)\, v`, whose mean over probes is the same, in half the
    products.

    Arguments:
        terms: n, at least 1.
        probes: Number of probes K for each sample.
        probe: Name of their distribution, ``rademacher``, ``gaussian`` or ``orthogonal``.

    Raises:
        ValueError: terms or probes below 1, or an unknown distribution.
    """

    terms: int = 10
    probes: int = 1
    probe: str = "rademacher"
    kind: ClassVar[Kind] = "biased"

    def __post_init__(self) -> None:
        check_settings(self.probes, self.probe, terms=self.terms)

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        v = draw_probes(self.probe, self.probes, linearization.point, generator)
        weights = [(-1.0) ** (k + 1) / k for k in range(1, self.terms + 1)]
        with torch.no_grad():
            left, right = [v], [v, linearization.jvp(v)]
            while len(left) < self.terms:
                left.append(linearization.vjp(left[-1]))
            while len(right) < self.terms:
                right.append(linearization.jvp(right[-1]))
            # v' J^k v from the middle, so that one more product is not needed.
            middles = [(k // 2, k - k // 2) for k in range(1, self.terms + 1)]
            powers = [dot(left[i], right[j]) for i, j in middles]
            values = torch.stack([c * power for c, power in zip(weights, powers, strict=True)])
            values = values.sum(0)
            for chain in (left, right):
                sizes = [norms(power) for power in chain]
                for before, after in zip(sizes, sizes[1:], strict=False):
                    values = values.masked_fill(expands(before, after), torch.nan)
            sums = [
                torch.stack([c * u for c, u in zip(weights[j:], left, strict=False)]).sum(0)
                for j in range(self.terms)
            ]
        forms = linearization.bilinear(torch.cat(sums), torch.cat(right[: self.terms]))
        bound = linearization.lipschitz
        remainder = norms(left[-1]) * norms(right[1])
        tail = torch.inf if bound is None else tail_sum(bound, self.terms)
        return LogDetEstimate.of_probes(
            values,
            surrogate=forms.sum(0) / self.probes,
            truncation=torch.where(remainder == 0, 0.0, remainder * tail).mean(0),
            gradient_truncation=torch.full_like(values[0], torch.inf),
            products=torch.full_like(values[0], len(left) + len(right) - 2),
        )
