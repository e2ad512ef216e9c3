"""Rademacher probes of few dimensions, drawn without replacement."""

import math

import torch
from torch import Tensor

from iresflow.streams import UNIFORM, Stream, draw

__all__ = ["FEW", "distinct_signs"]

FEW = 8
"""Dimensions up to which probes are drawn so: they have 128 patterns of signs then."""


def distinct_signs(count: int, like: Tensor, stream: Stream | None) -> Tensor:
    r"""Probes with entries -1 or 1 that differ by more than their sign, ``(count, *like.shape)``.

    A probe v and -v give the same :math:`v^\top A v`, so in D dimensions there are
    :math:`2^{D-1}` values only. Independent probes are often equal there: their spread is then
    zero, whatever their error. Drawn without replacement each one is as random as before, their
    mean is more exact, and their spread overestimates its error. After all patterns, which give
    the exact trace, they begin anew.
    """
    batch, dim = like.shape[0], math.prod(like.shape[1:])
    patterns = 2 ** (dim - 1)
    rounds = -(-count // patterns)
    size = (rounds, batch, patterns)
    numbers = draw(UNIFORM, size, stream, batch=1, device=like.device, dtype=torch.float32)
    order = numbers.argsort(dim=-1, stable=True).movedim(1, 0).flatten(1)[:, :count]
    places = torch.arange(dim, device=like.device)
    bits = (order.T[:, :, None] >> places) & 1  # the last entry is always the same
    return (2 * bits - 1).to(like.dtype).reshape(count, *like.shape)
