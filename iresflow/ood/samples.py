"""The samples that scores are of: checked, in the flow's type, in parts that fit in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from iresflow.models import Flow, ImageFlow
from iresflow.models.parts.images import require_integers
from iresflow.tensors import as_tensor, widest
from iresflow.training.loop.inputs import Array
from iresflow.training.objectives.contexts import context_of

__all__ = ["batches", "checked", "narrowed", "rounding_of", "weight_of"]

BATCH = 250
"""Samples that are scored at a time, which limits the memory."""


def checked(flow: Flow, x: Array, context: Array | None) -> tuple[Tensor, Tensor | None]:
    """Samples ``(B, *shape)`` on the flow's device, and their contexts; see `Score.fit`."""
    if not isinstance(flow, Flow):
        raise ValueError(f"scores are of a flow, got {type(flow).__name__}")
    if flow.training:
        raise ValueError("scores are of a flow in eval mode: call flow.eval() first")
    like = weight_of(flow)
    values = as_tensor("x", x).to(like.device)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError("there are no samples to be scored or fitted to")
    if isinstance(flow, ImageFlow):
        require_integers(values, flow.shape, flow.levels)
        return values, _contexts(flow, values, context)
    if tuple(values.shape[1:]) != flow.shape:
        raise ValueError(
            f"this flow takes samples of shape (B, {', '.join(map(str, flow.shape))}), got "
            f"{tuple(values.shape)}"
        )
    if values.is_complex():
        raise ValueError(f"the samples must be real numbers, got {values.dtype}")
    values = values.to(widest(like.device))
    if not bool(values.isfinite().all()):
        raise ValueError("the samples hold NaN or infinity")
    return values, _contexts(flow, values, context)


def _contexts(flow: Flow, x: Tensor, context: Array | None) -> Tensor | None:
    like = weight_of(flow)
    if isinstance(flow, ImageFlow) and flow.given is not None and context is None:
        return flow.given(x).to(like.dtype)
    if not flow.context_shape:
        if context is not None:
            raise ValueError("this flow takes no context: it was built with context_dim=0")
        return None
    given = None if context is None else as_tensor("the context", context)
    known = context_of(given, flow.context_dim, like)
    wanted = (len(x), *flow.context_shape)
    if known is None or tuple(known.shape) != wanted or not bool(known.isfinite().all()):
        got = "none" if known is None else f"{tuple(known.shape)}"
        raise ValueError(f"this flow needs finite contexts of shape {wanted}, got {got}")
    return known


def batches(x: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Samples and contexts in parts that fit in memory."""
    for first in range(0, len(x), BATCH):
        rows = slice(first, first + BATCH)
        yield x[rows], None if context is None else context[rows]


def weight_of(flow: Flow) -> Tensor:
    """A tensor of the flow's type and device."""
    floats = (t for t in [*flow.parameters(), *flow.buffers()] if t.is_floating_point())
    return next(floats, torch.empty(0))


def narrowed(flow: Flow, x: Tensor) -> Tensor:
    """Samples in the type of the flow's weights; integer images as they are."""
    return x.to(weight_of(flow).dtype) if x.is_floating_point() else x


def rounding_of(flow: Flow) -> float:
    """What is allowed for the arithmetic of a flow, relative to its numbers."""
    return 8 * torch.finfo(weight_of(flow).dtype).eps
