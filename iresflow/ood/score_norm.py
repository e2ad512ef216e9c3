"""How steep the log-density is at a sample."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.models import Flow
from iresflow.models.likelihood import student_quantile
from iresflow.ood.base import Measure, MeasuredScore
from iresflow.ood.draws import Draws, Reads, limits_of, seeds_of
from iresflow.ood.samples import rounding_of
from iresflow.ood.scores import Scores
from iresflow.training.evaluation.single import Scoring

__all__ = ["ScoreNorm"]

FEWEST_DRAWS = 3
"""Without one of them, two are left for a product."""


@final
@dataclass(frozen=True)
class ScoreNorm(MeasuredScore):
    r""":math:`|\nabla_y \log p|`, the norm of the statistical score.

    y is what the flow's blocks take: the columns of vectors in units of their deviations, so that
    the norm doesn't depend on the units of the data, and images after logit or centring. Of images
    it is the gradient of the mean over the dequantisation noise. The square of a gradient that is
    estimated is too large by its variance; that of two independent ones' product is not, so the
    norm comes from the products of all pairs of draws. Where the density is 0, it is infinite.

    Arguments:
        scoring: Draws, at least 3, probes, level of the error bars, and seed.

    Raises:
        ValueError: fewer draws.
    """

    scoring: Scoring = field(default_factory=Scoring)
    reads: ClassVar[Reads] = Reads.GRADIENT

    def __post_init__(self) -> None:
        if self.scoring.draws < FEWEST_DRAWS:
            raise ValueError(
                f"draws must be at least {FEWEST_DRAWS} for the spread of their products, got "
                f"{self.scoring.draws}"
            )

    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        return partial(_norms, self.scoring)


def _norms(scoring: Scoring, draws: Draws) -> Scores:
    seeds = seeds_of(draws.flow, scoring, limits_of(draws.flow, scoring).gradients)
    gradients = torch.stack([draws.gradient(scoring, seed) for seed in seeds])
    log_probs = torch.stack([draws.likelihood(scoring, seed).log_prob for seed in seeds])
    nowhere = log_probs.isneginf().any(0)
    found = _norms_of(gradients.double(), scoring, draws.flow)
    columns = (found.values, found.low, found.high)
    return Scores(*(torch.where(nowhere, torch.inf, column) for column in columns))


def _norms_of(gradients: Tensor, scoring: Scoring, flow: Flow) -> Scores:
    """The norms of the means of which ``(R, B, D)`` are draws."""
    count = len(gradients)
    if count == 1:
        norms = gradients[0].norm(dim=1)
        return Scores.around(norms, rounding_of(flow) * norms)
    squares = _unbiased(gradients)
    without = torch.stack(
        [_unbiased(torch.cat([gradients[:r], gradients[r + 1 :]])) for r in range(count)]
    )
    # The jackknife: the spread of what the draws give without one of them each.
    spread = ((count - 1) / count * (without - without.mean(0)).square().sum(0)).sqrt()
    half = student_quantile(scoring.level, torch.full_like(squares, count - 1)) * spread
    norms, low, high = (v.clamp_min(0).sqrt() for v in (squares, squares - half, squares + half))
    rounding = rounding_of(flow) * norms
    return Scores(norms, (low - rounding).clamp_min(0), high + rounding)


def _unbiased(gradients: Tensor) -> Tensor:
    """The squared norm of the mean of which ``(R, B, D)`` are draws, ``(B,)``."""
    count, own = len(gradients), gradients.square().sum((0, 2))
    return (gradients.sum(0).square().sum(1) - own) / (count * (count - 1))
