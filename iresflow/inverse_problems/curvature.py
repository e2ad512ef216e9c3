"""What past steps tell of a function's curvature: limited-memory BFGS on some of the entries.

References:
    Updating quasi-Newton matrices with limited storage (Nocedal, 1980). Numerical Optimization
    (Nocedal and Wright, 2006), algorithm 7.4.
"""

from typing import final

import torch
from torch import Tensor

from iresflow.tensors import per_sample, sum_per_sample

__all__ = ["Curvature"]

STRAIGHT = 1e-8
"""Curvature along a step, in units of step and change of the gradient, that counts as none."""


@final
class Curvature:
    """The last steps of each sample, and how the gradient has changed along them.

    Arguments:
        memory: M, how many.
        like: Points ``(B, *event)``.
    """

    def __init__(self, memory: int, like: Tensor) -> None:
        # The newest come first; what is 0 tells nothing.
        self._steps = like.new_zeros(memory, *like.shape)
        self._changes = torch.zeros_like(self._steps)

    def learn(self, rows: Tensor, step: Tensor, change: Tensor) -> None:
        """Keeps steps along which the function has curved up; others tell of no minimum.

        Arguments:
            rows: The numbers ``(N,)`` of the samples.
            step, change: ``(N, *event)``, of the point and of its gradient.
        """
        up = _curved(step, change)
        for kept, new in ((self._steps, step), (self._changes, change)):
            kept[:, rows[up]] = torch.cat([new[up][None], kept[:-1, rows[up]]])

    def solve(self, rows: Tensor, gradient: Tensor, free: Tensor, length: Tensor) -> Tensor:
        """The inverse of the estimated Hessian of the free entries, times a gradient.

        Arguments:
            rows: The numbers ``(N,)`` of the samples.
            gradient: ``(N, *event)``.
            free: Booleans ``(N, *event)``; the other entries of the result are 0.
            length: ``(N,)``, of a step along the gradient where nothing else is known.
        """
        steps = torch.where(free, self._steps[:, rows], 0)
        changes = torch.where(free, self._changes[:, rows], 0)
        found = torch.where(free, gradient, 0)
        inverses, weights = [], []
        for step, change in zip(steps, changes, strict=True):
            useful = _curved(step, change)
            inverses.append(torch.where(useful, 1 / sum_per_sample(step * change), 0))
            weights.append(inverses[-1] * sum_per_sample(step * found))
            found = found - per_sample(weights[-1], found) * change
        found = per_sample(self._scale(steps, changes, inverses, length), found) * found
        past = list(zip(steps, changes, inverses, weights, strict=True))
        for step, change, inverse, weight in reversed(past):
            beyond = inverse * sum_per_sample(change * found)
            found = found + per_sample(weight - beyond, found) * step
        return found

    @staticmethod
    def _scale(steps: Tensor, changes: Tensor, inverses: list[Tensor], length: Tensor) -> Tensor:
        """What the newest step that is of use says of all directions that none has gone."""
        scale = length
        for step, change, inverse in reversed(list(zip(steps, changes, inverses, strict=True))):
            share = sum_per_sample(step * change) / sum_per_sample(change.square())
            scale = torch.where(inverse > 0, share, scale)
        return scale


def _curved(step: Tensor, change: Tensor) -> Tensor:
    """Whether the function curves up along steps ``(N, *event)``, ``(N,)``."""
    sizes = sum_per_sample(step.square()) * sum_per_sample(change.square())
    return sum_per_sample(step * change) > STRAIGHT * sizes.sqrt()
