"""What a flow is asked about a sample: its value as the flow takes it, its context, its unit."""

import torch.nn.functional as F
from torch import Tensor

from iresflow.data import Split
from iresflow.models import Flow, ImageFlow
from iresflow.training.loop.batches import Batch, Samples

__all__ = ["asked_of", "batch_of", "context_for", "context_of", "unit_of"]


def unit_of(flow: Flow) -> str:
    """The unit of a flow's score: ``bits/dim`` for images, ``nats`` for all else."""
    return "bits/dim" if isinstance(flow, ImageFlow) else "nats"


def asked_of(split: Split) -> Samples:
    """A split as training takes it: contexts, where it has some, are in the place of labels."""
    return split if split.contexts is None else Batch(split.values, split.contexts)


def context_of(labels: Tensor | None, context_dim: int, like: Tensor) -> Tensor | None:
    """Contexts ``(B, context_dim)`` of the type and device of ``like``, or None for no context.

    Arguments:
        labels: Class numbers ``(B,)``, which become one-hot, or contexts as they are.
        context_dim: Of the flow; 0 takes no context, whatever the labels.
        like: A parameter of the flow.
    """
    if context_dim == 0 or labels is None:
        return None
    labels = labels.to(like.device)
    if labels.ndim == 1 and not labels.is_floating_point():
        labels = F.one_hot(labels.long(), context_dim)
    return labels.to(like.dtype)


def context_for(flow: Flow, samples: Samples) -> Tensor | None:
    """The contexts of samples on the model's device, or None for no context.

    They are what the flow is given of the values, where it is, and else come from the labels.
    """
    like = next(flow.parameters())
    if isinstance(flow, ImageFlow) and flow.given is not None:
        return flow.given(samples.values.to(like.device)).to(like.dtype)
    return context_of(samples.labels, flow.context_dim, like)


def batch_of(flow: Flow, split: Samples, first: int, count: int) -> tuple[Tensor, Tensor | None]:
    """Some samples of a split on the model's device, and their contexts."""
    like = next(flow.parameters())
    batch = Batch.of(split, slice(first, first + count))
    values = batch.values.to(like.device)
    if not isinstance(flow, ImageFlow):
        values = values.to(like.dtype)
    return values, context_for(flow, batch)
