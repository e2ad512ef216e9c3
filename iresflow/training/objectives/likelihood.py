"""The objective of flows: maximum likelihood, in bits per dimension of images, else in nats."""

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from iresflow.models import Flow, ImageFlow
from iresflow.models.dequantization import UniformNoise
from iresflow.streams import Stream
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.loop.batches import Batch, Samples, random_stream
from iresflow.training.objectives.base import Album, Objective, Ready, Score, Terms
from iresflow.training.objectives.certified import certified_ready, initialize_once
from iresflow.training.objectives.contexts import context_for, unit_of

__all__ = ["MaximumLikelihood"]

INITIALIZATION_ENTRIES = 2_000_000
"""Entries of the data from which ActNorm is initialised, about: more than a batch, so that a batch
of one trains; and all rows of a table but a very large one, since a column may be mostly zeros."""


@final
@dataclass(frozen=True)
class MaximumLikelihood(Objective):
    """Minus the mean log-likelihood of a flow (thesis, eq. 5.4): of integer images with the flow's
    dequantisation noise, whose log-density counts against it, and of all else as it is.

    Labels are class numbers ``(B,)`` or contexts, see `context_for`.
    """

    def unit(self, model: nn.Module) -> str:
        return unit_of(_flow(model))

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        """The mean loss and its parts, which add up to it but for a constant.

        Its value is that of the estimates, never that of a surrogate; its gradient is that of the
        surrogates. The values are taken on trust: to look at them, the host would wait for a GPU
        in every step.
        """
        flow = _flow(model)
        x, context = batch.values, context_for(flow, batch)
        constant, scale, logged = 0.0, 1.0, {}
        if isinstance(flow, ImageFlow):
            noisy = flow.dequantized(x, stream, check=False)
            constant, scale = math.log2(flow.levels), 1 / (flow.base_dim * math.log(2))
            x = noisy.value
            if not isinstance(flow.noise, UniformNoise):
                logged = {"log_noise": scale * noisy.log_density.mean()}
        z, log_det = flow.forward(x, context, generator=stream, check=False)
        log_base = scale * flow.base.log_prob(z, context).mean()
        log_det = scale * log_det.mean()
        loss = constant - log_base - log_det + sum(logged.values())
        return Terms(loss, {"log_base": log_base, "log_det": log_det, **logged})

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        result = evaluate(_flow(model), split, precision=Precision(repeated=0))
        return Score(
            result.mean,
            {
                "standard_error": result.standard_error,
                "truncation_bound": result.truncation_bound,
            },
        )

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        """Initialises ActNorm from random samples, unless all of it has seen data before.

        Raises:
            UnknownBoundError: a layer has no known bound, so the flow could never be evaluated.
        """
        flow = _flow(model)
        if flow.spec is None:
            flow.certify()  # better now than after the first steps
        count = max(16, INITIALIZATION_ENTRIES // split.values[0].numel())
        if isinstance(flow, ImageFlow):
            count = min(count, 512)  # each has many pixels, and their activations take memory

        def start(batch: Batch) -> None:
            like = next(flow.parameters())
            x: Tensor = batch.values.to(like.device)
            if isinstance(flow, ImageFlow):
                x = flow.dequantize(x, random_stream(seed, 0, 4, like.device))
            flow.initialize(x, context_for(flow, batch))

        initialize_once(flow, split, seed, count, start)

    def make_ready(self, model: nn.Module) -> Ready:
        return certified_ready(_flow(model))

    def illustrate(self, model: nn.Module, split: Samples, album: Album) -> None:
        from iresflow.training.runs.pictures import draw_flow  # plots cost a second of import

        draw_flow(_flow(model), split, album)


def _flow(model: nn.Module) -> Flow:
    if not isinstance(model, Flow):
        raise ValueError(
            f"maximum likelihood trains flows, got a {type(model).__name__}: pass an objective"
        )
    return model
