"""Independent draws of what is random in a score: an image's noise, and the probes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from iresflow.logdet import LogDetEstimator
from iresflow.logdet.small import ExactWhereSmall
from iresflow.models import Flow, ImageFlow, Likelihood
from iresflow.models.likelihood import sample_stream
from iresflow.streams import KeyedStream
from iresflow.training.evaluation.evaluate import Precision, round_seed, scoring_estimator
from iresflow.training.evaluation.single import Scoring

__all__ = ["Limits", "drawn", "estimator_of", "likelihood_of", "limits_of", "seeds_of"]


def estimator_of(flow: Flow, scoring: Scoring) -> LogDetEstimator | None:
    """The estimator of the log-determinants; None for the flow's own way, which is exact."""
    return scoring_estimator(flow, Precision(probes=scoring.probes))


@final
class Limits(NamedTuple):
    """Dimensions up to which nothing is estimated; infinite where nothing ever is."""

    values: float
    gradients: float


def limits_of(flow: Flow, scoring: Scoring) -> Limits:
    """Up to how many dimensions log-determinants are exact, and their gradients."""
    estimator = estimator_of(flow, scoring)
    if estimator is None:
        return Limits(math.inf, math.inf)
    if not isinstance(estimator, ExactWhereSmall):
        return Limits(0, 0)
    return Limits(max(estimator.limit, estimator.values), estimator.limit)


def seeds_of(flow: Flow, scoring: Scoring, exact: float) -> Sequence[int]:
    """The seeds of the draws; a single one where nothing is random.

    Arguments:
        flow: Images are random by their noise.
        scoring: How many draws.
        exact: Dimensions up to which nothing else is random.
    """
    random = isinstance(flow, ImageFlow) or flow.base_dim > exact
    return [round_seed(scoring.seed, row) for row in range(scoring.draws if random else 1)]


def drawn(flow: Flow, x: Tensor, context: Tensor | None, seed: int) -> tuple[Tensor, KeyedStream]:
    """Samples as floats, images with a draw of their noise; and the stream of their probes."""
    stream = sample_stream((x, context), None, seed)
    return (flow.dequantize(x, stream) if isinstance(flow, ImageFlow) else x), stream


@torch.no_grad()
def likelihood_of(
    flow: Flow, x: Tensor, context: Tensor | None, scoring: Scoring, seed: int
) -> Likelihood:
    """Of one draw, in nats; of images, that of the integers."""
    estimator = estimator_of(flow, scoring)
    if not isinstance(flow, ImageFlow):
        return flow.likelihood(x, context, estimator, seed=seed)
    found = flow.bits_per_dim(x, context, estimator, seed=seed)
    nats = found.likelihood.log_prob.double() - flow.base_dim * math.log(flow.levels)
    return replace(found.likelihood, log_prob=nats)
