"""How well a latent fits the base density, scale by scale."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.special import log_ndtr

from iresflow.errors import NonFiniteError
from iresflow.models import Flow, ImageFlow
from iresflow.ood.base import Measure, MeasuredScore
from iresflow.ood.draws import Draws, Reads, seeds_of
from iresflow.ood.samples import batches, narrowed, rounding_of
from iresflow.ood.scores import Scores
from iresflow.training.evaluation.single import Scoring

__all__ = ["LatentFit", "anderson_darling", "latent_statistics"]

DRAWS = 4
"""For each that is asked for: one without a log-determinant costs a small part of one with."""


@final
@dataclass(frozen=True)
class LatentFit(MeasuredScore):
    """How far a latent's statistics are from those of samples that are inside.

    Under the model, the entries of a latent in units of the base density are independent and
    standard normal. The statistics of each scale are the logarithms of their mean square and of
    Anderson and Darling's statistic, and of images the mean products of entries that are
    neighbours in a row or a column. The score is their squared Mahalanobis distance from the
    samples that are inside, with the covariance of Ledoit and Wolf (2004); of images, in the mean
    over the dequantisation noise. No log-determinant is computed: draws are cheap, and four times
    as many are taken as other scores take.

    Arguments:
        scoring: Draws, of which four times as many are taken, level of the error bars, and seed.

    References:
        Asymptotic Theory of Certain "Goodness of Fit" Criteria Based on Stochastic Processes
        (Anderson and Darling, 1952).
    """

    scoring: Scoring = field(default_factory=Scoring)
    reads: ClassVar[Reads] = Reads.LATENT

    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        from sklearn.covariance import LedoitWolf  # slow to import

        if len(x) < 2:
            raise ValueError("a spread is fitted to two samples or more, got 1")
        seed = seeds_of(flow, self.scoring, math.inf)[0]
        taken = batches(narrowed(flow, x), context)
        parts = [_statistics(Draws(flow, *batch), seed) for batch in taken]
        inside = np.concatenate(parts)
        deviation = inside.std(0)
        if not np.isfinite(inside).all():
            raise NonFiniteError("statistics of the latents are not finite: the flow is damaged")
        if not (deviation > 0).all():
            raise ValueError("the samples are too alike: a statistic of their latents is constant")
        fitted = LedoitWolf().fit(inside / deviation)
        mean, precision = fitted.location_ * deviation, fitted.precision_
        return partial(_distances, self.scoring, mean, deviation, precision)


def _distances(
    scoring: Scoring,
    mean: np.ndarray,
    deviation: np.ndarray,
    precision: np.ndarray,
    draws: Draws,
) -> Scores:
    rows = []
    for seed in seeds_of(draws.flow, replace(scoring, draws=DRAWS * scoring.draws), math.inf):
        away = (_statistics(draws, seed) - mean) / deviation
        distance = np.einsum("bi,ij,bj->b", away, precision, away)
        # Latents so far out that a statistic is infinite have no product of two, but a distance.
        far = np.isinf(away).any(1) & ~np.isnan(away).any(1)
        rows.append(torch.from_numpy(np.where(far, np.inf, distance)))
    stacked = torch.stack(rows).to(draws.x.device)
    # Statistics are means of many entries: their rounding is far below that of one.
    rounding = rounding_of(draws.flow) * (1 + stacked.mean(0))
    return Scores.of_draws(stacked, rounding, scoring.level)


@torch.no_grad()
def _statistics(draws: Draws, seed: int) -> np.ndarray:
    flow = draws.flow
    z = flow.base.standard_normal(draws.latent(seed), draws.context)
    if z is None:
        raise ValueError(
            f"the fit of latents is known for normal base densities and Student's t, not for "
            f"{flow.base}"
        )
    scales = flow.latents(z) if isinstance(flow, ImageFlow) else (z,)
    full = (scale.double() for scale in scales if scale.numel())  # some factor nothing out
    columns = [column for scale in full for column in latent_statistics(scale)]
    return torch.stack(columns, dim=1).cpu().numpy()


def latent_statistics(scale: Tensor) -> list[Tensor]:
    """The statistics ``(B,)`` of latents ``(B, D)`` or ``(B, C, H, W)``, standard normal ones."""
    entries = scale.flatten(1)
    tiny = torch.finfo(entries.dtype).tiny
    found = [
        entries.square().mean(1).clamp_min(tiny).log(),
        anderson_darling(entries).clamp_min(tiny).log(),
    ]
    if scale.ndim == 4:
        pairs = (
            (scale[..., 1:], scale[..., :-1]),
            (scale[..., 1:, :], scale[..., :-1, :]),
        )
        found += [(a * b).flatten(1).mean(1) for a, b in pairs if a.numel()]
    return found


def anderson_darling(entries: Tensor) -> Tensor:
    r"""Anderson and Darling's statistic ``(B,)`` of rows ``(B, n)``, for the normal.

    :math:`-n - \frac{1}{n} \sum_i (2 i - 1) (\log \Phi(e_i) + \log(1 - \Phi(e_{n+1-i})))`, with
    the entries in rising order.
    """
    n = entries.shape[1]
    rising = entries.sort(dim=1).values
    odd = 2 * torch.arange(1, n + 1, dtype=entries.dtype, device=entries.device) - 1
    return -n - (odd * (log_ndtr(rising) + log_ndtr(-rising.flip(1)))).mean(1)
