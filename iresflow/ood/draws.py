"""Independent draws of what is random in a score: an image's noise, and the probes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from iresflow.logdet import LogDetEstimator
from iresflow.logdet.small import ExactWhereSmall
from iresflow.models import Flow, ImageFlow, Likelihood
from iresflow.models.likelihood import sample_stream
from iresflow.streams import KeyedStream
from iresflow.training.evaluation.evaluate import Precision, round_seed, scoring_estimator
from iresflow.training.evaluation.single import Scoring

__all__ = ["drawn", "estimator_of", "likelihood_of", "seeds_of"]


def estimator_of(flow: Flow, scoring: Scoring) -> LogDetEstimator | None:
    """The estimator of the log-determinants; None for the flow's own way, which is exact."""
    return scoring_estimator(flow, Precision(probes=scoring.probes))


def seeds_of(flow: Flow, scoring: Scoring, *, probed: bool = True) -> Sequence[int]:
    """The seeds of the draws; a single one where nothing is random.

    Arguments:
        flow: Images are random by their noise.
        scoring: How many draws.
        probed: Whether log-determinants are estimated, which is random in many dimensions.
    """
    estimator = estimator_of(flow, scoring) if probed else None
    exact = estimator is None or (
        isinstance(estimator, ExactWhereSmall) and flow.base_dim <= estimator.limit
    )
    count = 1 if exact and not isinstance(flow, ImageFlow) else scoring.draws
    return [round_seed(scoring.seed, row) for row in range(count)]


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
