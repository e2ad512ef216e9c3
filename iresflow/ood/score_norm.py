"""How steep the log-density is at a sample."""

from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from iresflow.models import Flow
from iresflow.models.likelihood import student_quantile
from iresflow.ood.base import Measure, Score, Scores
from iresflow.ood.draws import drawn, estimator_of, limits_of, seeds_of
from iresflow.ood.samples import rounding_of
from iresflow.training.evaluation.single import Scoring

__all__ = ["ScoreNorm"]

FEWEST_DRAWS = 3
"""Without one of them, two are left for a product."""


@final
@dataclass(frozen=True)
class ScoreNorm(Score):
    r""":math:`|\nabla_y \log p|`, the norm of the statistical score.

    y is what the flow's blocks take: the columns of vectors in units of their deviations, so that
    the norm doesn't depend on the units of the data, and images after logit or centring. Of images
    it is the gradient of the mean over the dequantisation noise. The square of a gradient that is
    estimated is too large by its variance; that of two independent ones' product is not, so the
    norm comes from the products of all pairs of draws.

    Arguments:
        scoring: Draws, at least 3, probes, level of the error bars, and seed.

    Raises:
        ValueError: fewer draws.
    """

    scoring: Scoring = field(default_factory=Scoring)

    def __post_init__(self) -> None:
        if self.scoring.draws < FEWEST_DRAWS:
            raise ValueError(
                f"draws must be at least {FEWEST_DRAWS} for the spread of their products, got "
                f"{self.scoring.draws}"
            )

    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        return partial(_norms, self.scoring)


def _norms(scoring: Scoring, flow: Flow, x: Tensor, context: Tensor | None) -> Scores:
    seeds = seeds_of(flow, scoring, limits_of(flow, scoring).gradients)
    gradients = torch.stack([_gradient(scoring, flow, x, context, seed) for seed in seeds])
    count, gradients = len(gradients), gradients.double()
    if count == 1:
        norms = gradients[0].norm(dim=1)
        return Scores(norms, rounding_of(flow) * norms)
    squares = _unbiased(gradients)
    without = torch.stack(
        [_unbiased(torch.cat([gradients[:r], gradients[r + 1 :]])) for r in range(count)]
    )
    # The jackknife: the spread of what the draws give without one of them each.
    spread = ((count - 1) / count * (without - without.mean(0)).square().sum(0)).sqrt()
    half = student_quantile(scoring.level, torch.full_like(squares, count - 1)) * spread
    norms, low, high = (v.clamp_min(0).sqrt() for v in (squares, squares - half, squares + half))
    return Scores(norms, torch.maximum(norms - low, high - norms) + rounding_of(flow) * norms)


def _unbiased(gradients: Tensor) -> Tensor:
    """The squared norm of the mean of which ``(R, B, D)`` are draws, ``(B,)``."""
    count, own = len(gradients), gradients.square().sum((0, 2))
    return (gradients.sum(0).square().sum(1) - own) / (count * (count - 1))


def _gradient(
    scoring: Scoring, flow: Flow, x: Tensor, context: Tensor | None, seed: int
) -> Tensor:
    """Of one draw, ``(B, D)``."""
    values, stream = drawn(flow, x, context, seed)
    estimator = estimator_of(flow, scoring) or flow.log_det
    y = flow.data_map.transform(values).detach().requires_grad_()
    with torch.enable_grad():
        z, log_det = flow.bijection(y, context, partial(estimator, generator=stream))
        log_prob = flow.base.log_prob(z, context) + log_det
    if not log_prob.requires_grad:  # a density that is constant where it is not 0
        return torch.zeros_like(y).flatten(1)
    return torch.autograd.grad(log_prob.sum(), y)[0].flatten(1)
