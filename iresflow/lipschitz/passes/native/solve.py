"""Inverses of a chain, compiled for the processor: see ``cpp/solve.h``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from iresflow.lipschitz.passes.native.passes import NativePasses
from iresflow.solution import MixedIteration, Solution

__all__ = ["native_solution"]

Rounding = tuple[float, Tensor | float]
"""A slope and an offset, ``(B,)`` where samples differ: g's rounding at x is at most ``slope * |x|
+ offset`` in units of eps."""


def native_solution(
    passes: Sequence[NativePasses], roundings: Sequence[Rounding], y: Tensor, how: MixedIteration
) -> Solution | None:
    """Solves x + g(x) = y, each sample's whole iteration in one go.

    Arguments:
        passes: Through g in the type of its weights, and in a wider one where that certifies.
        roundings: Bounds of g's rounding in these types.
        y: ``(B, *event)``.
        how: The iteration.

    Returns:
        The solution; None where a sample has none, or for samples of one number a channel.
    """
    first, last = passes[0], passes[-1]
    if first.pixels == 1:  # they are computed together
        return None
    numbers = y.new_tensor(
        [how.lipschitz, how.tol, how.memory, how.max_steps], dtype=torch.float64
    )
    slopes = numbers.new_tensor([slope for slope, _ in roundings])
    offsets = numbers.new_empty(len(roundings), len(y))
    for row, (_, offset) in zip(offsets, roundings, strict=True):
        row[:] = offset
    value, found = last.solve(first, numbers, slopes, offsets, y)
    steps, error, floor = found.unbind(1)
    if not bool(error.isfinite().all()):
        return None
    return Solution(value, steps.long(), error.to(value.dtype), floor.to(value.dtype))
