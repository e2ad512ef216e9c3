"""In how many directions the density is wide at a sample, by products with the Jacobian."""

from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from iresflow.models import Flow
from iresflow.ood.base import Measure, MeasuredScore
from iresflow.ood.draws import Draws, estimator_of, seeds_of
from iresflow.ood.jacobian import FlowJacobian
from iresflow.ood.quadrature import resolvent_bounds
from iresflow.ood.samples import batches, narrowed, rounding_of
from iresflow.ood.scores import Scores
from iresflow.tensors import rademacher
from iresflow.training.evaluation.single import Scoring

__all__ = ["LocalDimension"]

EXACT_UP_TO = 32
"""Dimensions up to which the singular values are computed."""


@final
@dataclass(frozen=True)
class LocalDimension(MeasuredScore):
    r""":math:`-\sum_i 1 / (1 + \sigma_i^2 / t^2)`, minus the number of directions that are wide.

    The :math:`\sigma_i` are the singular values of the Jacobian of z = F(y) at a sample, where y
    is what the blocks take. The density is wide in a direction in which F stretches little. Such
    directions are counted, with a smooth step at t: the geometric mean of all singular values at
    the samples that are inside. A sample that is likely because the density is narrow about it has
    few wide directions.

    Up to 32 dimensions the singular values are computed. Above, the Krylov space of each random
    vector brackets what it adds to the sum; the error bars hold the brackets and the spread of the
    vectors.

    Arguments:
        scoring: Draws, probes, level of the error bars, and seed.
        steps: Dimension of the Krylov spaces.

    Raises:
        ValueError: steps below 1.

    References:
        A Geometric Explanation of the Likelihood OOD Detection Paradox (Kamkari et al., 2024); its
        count has a sharp step. https://arxiv.org/abs/2403.18910
        Matrices, Moments and Quadrature (Golub and Meurant, 1994).
    """

    scoring: Scoring = field(default_factory=lambda: Scoring(draws=4))
    steps: int = 12

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        taken = batches(narrowed(flow, x), context)
        logs = [_mean_logs(self.scoring, Draws(flow, *batch)) for batch in taken]
        return partial(self._count, float(torch.cat(logs).double().mean().exp()))

    def _count(self, width: float, draws: Draws) -> Scores:
        flow, rows, gaps = draws.flow, [], []
        for seed in seeds_of(flow, self.scoring, EXACT_UP_TO):
            values, stream = draws.noisy(seed)
            jacobian = FlowJacobian(flow, values, draws.context)
            if flow.base_dim <= EXACT_UP_TO:
                low = high = _exact(jacobian, width)
            else:
                probes = rademacher(self.scoring.probes, jacobian.point, stream)
                low, high = resolvent_bounds(jacobian, probes, width**2, self.steps)
            rows.append(-(low + high) / 2)
            gaps.append((high - low) / 2)
        stacked, gap = torch.stack(rows), torch.stack(gaps).mean(0)
        bounds = gap + rounding_of(flow) * flow.base_dim
        return Scores.of_draws(stacked, bounds, self.scoring.level)


def _exact(jacobian: FlowJacobian, width: float) -> Tensor:
    """The count ``(B,)`` from all singular values."""
    point = jacobian.point
    dim = point[0].numel()
    eye = torch.eye(dim, dtype=point.dtype, device=point.device)
    rows = jacobian.vjp(eye.view(dim, 1, *point.shape[1:]).expand(dim, *point.shape))
    values = torch.linalg.svdvals(rows.flatten(2).transpose(0, 1).double())
    return (1 / (1 + (values / width).square())).sum(1)


@torch.no_grad()
def _mean_logs(scoring: Scoring, draws: Draws) -> Tensor:
    """The means of the logarithms of the singular values, ``(B,)``: log |det J| / D."""
    flow = draws.flow
    values, stream = draws.noisy(seeds_of(flow, scoring, EXACT_UP_TO)[0])
    estimator = estimator_of(flow, scoring) or flow.log_det
    y = flow.data_map.transform(values)
    _, log_det = flow.bijection(y, draws.context, partial(estimator, generator=stream))
    return log_det / flow.base_dim
