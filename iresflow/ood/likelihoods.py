"""Scores that are functions of the log-likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.models import Flow
from iresflow.ood.base import Combine, Composite, Measure, MeasuredScore, Score
from iresflow.ood.draws import Draws, Reads, limits_of, seeds_of
from iresflow.ood.png import png_nats
from iresflow.ood.scores import Scores
from iresflow.training.evaluation.single import Scoring

__all__ = ["Complexity", "LogProb", "Typicality"]


@final
@dataclass(frozen=True)
class LogProb(MeasuredScore):
    r""":math:`-\log p(x)` in nats; of images, of the integers, in the mean over the noise.

    It fails where simple images are likely under a flow that has never seen their like.

    Arguments:
        scoring: Draws, probes, level of the error bars, and seed.

    References:
        Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019).
        https://arxiv.org/abs/1810.09136
    """

    scoring: Scoring = field(default_factory=Scoring)
    reads: ClassVar[Reads] = Reads.LIKELIHOOD

    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        return partial(_surprisal, self.scoring)


@final
@dataclass(frozen=True)
class Typicality(Composite):
    r""":math:`|\log p(x) - m|` in nats, with the mean m over the samples that are inside.

    Arguments:
        scoring: Draws, probes, level of the error bars, and seed.

    References:
        Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality (Nalisnick
        et al., 2019), the test of one sample. https://arxiv.org/abs/1906.02994
    """

    scoring: Scoring = field(default_factory=Scoring)

    @property
    def parts(self) -> tuple[Score, ...]:
        return (LogProb(self.scoring),)

    def combine(self, flow: Flow, x: Tensor, inside: Sequence[Scores]) -> Combine:
        mean = float(inside[0].values.mean())
        if not abs(mean) < torch.inf:
            raise ValueError("the density is 0 at a sample that shall be inside: there is no mean")
        return partial(_distance, mean)


@final
@dataclass(frozen=True)
class Complexity(Composite):
    r""":math:`-\log p(x) - L(x)` in nats, with the length L of the image as a PNG file.

    How many nats the flow's code of the image is longer than a code that knows no data. An image
    that is simple, and so likely under any flow, has a short file.

    Arguments:
        scoring: Draws, probes, level of the error bars, and seed.

    References:
        Input Complexity and Out-of-distribution Detection with Likelihood-based Generative Models
        (Serrà et al., 2020), equation 1. https://arxiv.org/abs/1909.11480
    """

    scoring: Scoring = field(default_factory=Scoring)

    @property
    def parts(self) -> tuple[Score, ...]:
        return (LogProb(self.scoring),)

    def combine(self, flow: Flow, x: Tensor, inside: Sequence[Scores]) -> Combine:
        png_nats(flow, x[:1])  # says what has no such code
        return _beyond_code


def _surprisal(scoring: Scoring, draws: Draws) -> Scores:
    seeds = seeds_of(draws.flow, scoring, limits_of(draws.flow, scoring).values)
    found = [draws.likelihood(scoring, seed) for seed in seeds]
    bounds = torch.stack([row.truncation_bound + row.rounding for row in found]).double().mean(0)
    return Scores.of_draws(-torch.stack([row.log_prob for row in found]), bounds, scoring.level)


def _distance(mean: float, flow: Flow, x: Tensor, parts: Sequence[Scores]) -> Scores:
    # A distance moves no more than what it is the distance of.
    distance = (parts[0].values - mean).abs()
    errors = parts[0].errors
    return Scores(distance, (distance - errors).clamp_min(0), distance + errors)


def _beyond_code(flow: Flow, x: Tensor, parts: Sequence[Scores]) -> Scores:
    code = png_nats(flow, x)
    return Scores(*(numbers - code for numbers in (parts[0].values, parts[0].low, parts[0].high)))
