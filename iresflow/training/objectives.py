"""What is minimised: bits per dimension of images, nats of vectors."""

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from iresflow.bijections import dequantize
from iresflow.models import ImageFlow, VectorFlow
from iresflow.streams import Stream

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
    generator: Stream,
) -> Objective:
    """The objective at a batch of integer images ``(B, C, H, W)`` or of vectors ``(B, D)``.

    The values are taken on trust: to look at them, the host would wait for a GPU in every step.

    Arguments:
        flow: The model.
        batch: Samples of a `Split`, which has checked them, on the model's device.
        context: ``(B, context_dim)`` or None.
        generator: Of the batch, or of a part of one.
    """
    constant, scale = 0.0, 1.0
    if isinstance(flow, ImageFlow):
        dtype = next(flow.parameters()).dtype
        batch = dequantize(batch, flow.levels, dtype=dtype, generator=generator)
        constant, scale = math.log2(flow.levels), 1 / (flow.base_dim * math.log(2))
    z, log_det = flow.forward(batch, context, generator=generator, check=False)
    log_base = scale * flow.base.log_prob(z, context).mean()
    log_det = scale * log_det.mean()
    return Objective(constant - log_base - log_det, log_base, log_det)
