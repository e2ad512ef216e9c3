"""Independent draws of what is random in a score: an image's noise, and the probes.

Scores read the same few things of a draw: the latent, the log-density, its gradient. `Draws`
computes each of them once for a batch, whichever scores ask.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple, final

import torch
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.logdet import LogDetEstimate, LogDetEstimator
from iresflow.logdet.small import ExactWhereSmall
from iresflow.models import Flow, ImageFlow, Likelihood
from iresflow.models.dequantization import Noisy
from iresflow.models.likelihood import BlockLikelihood, arithmetic_error, sample_stream
from iresflow.streams import KeyedStream, Stream
from iresflow.training.evaluation.evaluate import Precision, round_seed, scoring_estimator
from iresflow.training.evaluation.single import Scoring

__all__ = ["Draws", "Limits", "Reads", "estimator_of", "limits_of", "seeds_of"]


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


@final
class Reads(IntEnum):
    """What a score reads of a draw. Each pass gives all that those before it give."""

    SAMPLE = 0
    LATENT = 1
    LIKELIHOOD = 2
    GRADIENT = 3


@final
class _Pass(NamedTuple):
    """What a pass through a flow gave: latents ``(B, D)``, likelihoods, gradients ``(B, D)``."""

    latent: Tensor
    likelihood: Likelihood
    gradient: Tensor | None


@final
class Draws:
    """Samples and what is drawn of them. Each pass through the flow is made once and kept.

    Those who read gradients ask first: such a pass serves the others, too.

    Arguments:
        flow: In eval mode.
        x: ``(B, *shape)``: integers for an `ImageFlow`, and else floats of the flow's type.
        context: ``(B, *context_shape)`` or None.
    """

    def __init__(self, flow: Flow, x: Tensor, context: Tensor | None) -> None:
        self.flow, self.x, self.context = flow, x, context
        self._passes: dict[tuple[int, int], _Pass] = {}

    def noisy(self, seed: int) -> tuple[Tensor, KeyedStream]:
        """Samples as floats, images with a draw of their noise; and the stream of their probes."""
        stream, flow = self._stream(seed), self.flow
        if isinstance(flow, ImageFlow):
            return flow.dequantize(self.x, stream), stream
        return self.x, stream

    @torch.no_grad()
    def latent(self, seed: int) -> Tensor:
        """Latents ``(B, D)`` of a draw of the noise."""
        for (known, _), found in self._passes.items():
            if known == seed:
                return found.latent
        return self.flow.transform(self.noisy(seed)[0], self.context)

    def likelihood(self, scoring: Scoring, seed: int) -> Likelihood:
        """Of a draw, in nats; of images, that of the integers, its log-densities in float64."""
        key = seed, scoring.probes
        if key not in self._passes:
            self._passes[key] = self._passed(scoring, seed, steep=False)
        return self._passes[key].likelihood

    def gradient(self, scoring: Scoring, seed: int) -> Tensor:
        r""":math:`\nabla_y \log p`, ``(B, D)``, of a draw; y is what the flow's blocks take."""
        key = seed, scoring.probes
        found = self._passes.get(key)
        if found is None or found.gradient is None:
            found = self._passes[key] = self._passed(scoring, seed, steep=True)
        assert found.gradient is not None
        return found.gradient

    def _stream(self, seed: int) -> KeyedStream:
        return sample_stream((self.x, self.context), None, seed)

    @torch.no_grad()
    def _passed(self, scoring: Scoring, seed: int, *, steep: bool) -> _Pass:
        flow, stream = self.flow, self._stream(seed)
        estimator = estimator_of(flow, scoring) or flow.log_det
        estimates: list[LogDetEstimate] = []

        def recording(
            linearization: Linearization, generator: Stream | None = None
        ) -> LogDetEstimate:
            estimates.append(estimator(linearization, stream))
            return estimates[-1]

        if isinstance(flow, ImageFlow):
            noisy = flow.dequantized(self.x, stream, recording, check=False)
        else:
            noisy = Noisy(self.x, self.x.new_zeros(len(self.x)))
        y, outer = flow.data_map(noisy.value)
        y = y.detach().requires_grad_(steep)
        with torch.set_grad_enabled(steep):
            z, inner = flow.bijection(y, self.context, recording)
            of_y = flow.base.log_prob(z, self.context) + inner
        log_prob = of_y.detach() + outer - noisy.log_density
        rounding = arithmetic_error(log_prob, noisy.log_density, flow.base_dim)
        found = BlockLikelihood(log_prob, estimates, rounding).total()
        levels = flow.levels if isinstance(flow, ImageFlow) else 1
        nats = found.log_prob.double() - flow.base_dim * math.log(levels)
        gradient = _gradient(of_y, y) if steep else None
        return _Pass(z.detach(), replace(found, log_prob=nats), gradient)


def _gradient(log_prob: Tensor, y: Tensor) -> Tensor:
    if not log_prob.requires_grad:  # a density that is constant where it is not 0
        return torch.zeros_like(y).flatten(1)
    return torch.autograd.grad(log_prob, y, torch.ones_like(log_prob))[0].flatten(1)
