r"""Penalties by which the training of an operator learns of the density of its data.

Without them, F follows K where the data is, and knows nothing else of it. With x of density p and
noise of standard deviation :math:`\delta`, the least :math:`E\,\tfrac12 |F(x) - K x|^2` plus a
penalty makes the inverse of F a point estimator (Heilenkötter, 2025,
https://arxiv.org/abs/2510.26704): a first variation in F and an integration by parts show it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from iresflow.inverse_problems.learned import LearnedOperator
from iresflow.logdet import TRAINING, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes
from iresflow.streams import Stream
from iresflow.tensors import dot

__all__ = ["DivergencePenalty", "LogDetPenalty", "Penalty"]

Penalty = Callable[[LearnedOperator, Tensor, Stream], Tensor]
"""What is added to half the squared error of each sample: from F, x ``(B, *shape)`` and a random
stream to ``(B,)``, in squared units of the data."""


@final
@dataclass(frozen=True)
class LogDetPenalty:
    r""":math:`-\delta^2 \log|\det J_F(x)|`: the inverse then resembles a posterior mean.

    At the minimum, :math:`K F^{-1}(z) = z + \delta^2 \nabla \log q(z)` with the density q of F(x).
    That is Tweedie's formula of the posterior mean, for noise that is white in z, with q in the
    place of the density of noisy data.

    Arguments:
        noise: :math:`\delta`, in the units of z.
        log_det: The estimator of the log-determinants.

    Raises:
        ValueError: the noise is negative or not finite.
    """

    noise: float
    log_det: LogDetEstimator = TRAINING

    def __post_init__(self) -> None:
        _require_deviation(self.noise)

    def __call__(self, net: LearnedOperator, x: Tensor, stream: Stream) -> Tensor:
        _, log_det = net.transform_and_log_det(x, partial(self.log_det, generator=stream))
        return -(self.noise**2) * log_det


@final
@dataclass(frozen=True)
class DivergencePenalty:
    r""":math:`-\delta^2 \operatorname{tr} J_F(x)`: the inverse then resembles a MAP estimate.

    At the minimum, :math:`F(x) = K x - \delta^2 \nabla \log p(x)`, whose inverse solves the normal
    equation of the maximum a posteriori: exactly so if F can be that map, and K is that of the
    normal equations, :math:`A^* A` (for `SelfAdjoint.normal`, the noise is that of the
    measurement over ``norm``).

    The trace is Hutchinson's estimate, the mean of :math:`v^\top J_F v` over probes v.

    Arguments:
        noise: :math:`\delta`, in the units of z.
        probes: Their number for each sample.
        probe: Name of their distribution, ``rademacher``, ``gaussian`` or ``orthogonal``; of the
            last one, as many as dimensions give the exact trace.

    Raises:
        ValueError: the noise is negative or not finite, no probe, or another distribution.
    """

    noise: float
    probes: int = 1
    probe: str = "rademacher"

    def __post_init__(self) -> None:
        _require_deviation(self.noise)
        check_settings(self.probes, self.probe)

    @torch.enable_grad()
    def __call__(self, net: LearnedOperator, x: Tensor, stream: Stream) -> Tensor:
        x = x.detach().requires_grad_()
        probes = draw_probes(self.probe, self.probes, x, stream)
        z = net(x)
        pulled = [torch.autograd.grad(z, x, v, create_graph=True)[0] for v in probes]
        return -(self.noise**2) * dot(torch.stack(pulled), probes).mean(0)


def _require_deviation(noise: float) -> None:
    if not 0 <= noise < float("inf"):
        raise ValueError(f"the noise is a standard deviation, finite and 0 or more, got {noise}")
