"""What is minimised: bits per dimension of images, nats of vectors."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.models import ImageFlow, VectorFlow

__all__ = ["Objective", "evaluate_objective", "unit_of"]


@final
@dataclass(frozen=True)
class Objective:
    """The mean loss of a batch and its parts, which add up to it but for a constant.

    Attributes:
        loss: Bits/dim of images, nats of vectors. Its value is that of the estimates, never that
            of a surrogate; its gradient is that of the surrogates.
        log_base: The part of log p(z), in the same unit.
        log_det: The part of the log-determinants, in the same unit.
    """

    loss: Tensor
    log_base: Tensor
    log_det: Tensor


def unit_of(flow: ImageFlow | VectorFlow) -> str:
    """The unit of the loss: ``bits/dim`` for images, ``nats`` for vectors."""
    return "bits/dim" if isinstance(flow, ImageFlow) else "nats"


def evaluate_objective(
    flow: ImageFlow | VectorFlow,
    batch: Tensor,
    context: Tensor | None,
    generator: torch.Generator,
) -> Objective:
    """The objective at a batch of integer images ``(B, C, H, W)`` or of vectors ``(B, D)``."""
    constant, scale = 0.0, 1.0
    if isinstance(flow, ImageFlow):
        batch = flow.dequantize(batch, generator)
        constant, scale = math.log2(flow.levels), 1 / (flow.base_dim * math.log(2))
    z, log_det = flow(batch, context, generator=generator)
    log_base = scale * flow.base.log_prob(z, context).mean()
    log_det = scale * log_det.mean()
    return Objective(constant - log_base - log_det, log_base, log_det)
