r"""The driver that inverts :math:`y = x + g(x)` for a contraction g, sample by sample.

The driver owns the loop, the tolerance, the error bounds, the check for finite values, and which
samples still run; a `Solver` only proposes the next iterate. All norms are Euclidean, for each
sample over all of its entries.

With a certified :math:`L \ge \operatorname{Lip}(g)`, :math:`L < 1`, and the residual
:math:`r = y - g(x) - x`, the solution :math:`x^*` obeys :math:`|x - x^*| \le |r| / (1 - L)`, and
the next fixed-point iterate :math:`x + r` obeys :math:`|x + r - x^*| \le L |r| / (1 - L)` (both
from the proof of Lemma 4.5 of the thesis). The driver adds an allowance for the rounding of the
residual itself, `ROUNDING`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.errors import InversionError, NotContractiveError
from iresflow.tensors import norm_per_sample

__all__ = ["Map", "Solution", "Solver", "solve"]

Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""g for some samples of a batch: points ``(N, *event)`` and sample indices ``(N,)`` to values
``(N, *event)`` and magnitudes ``(N,)``, the added norms of all that was computed on the way."""

ROUNDING = 2.0
"""Rounding of a residual, in units of eps (|x| + |y| + magnitude of g). A model, not a proof: on
trained MNIST blocks float32 against float64 gave 0.45 of eps (|x| + |y| + |g|) at most."""

STAGNATION = 0.9
"""A residual that keeps more than this share of itself in a step no longer shrinks."""


class Solver(ABC):
    """Proposes iterates. A subclass is a frozen dataclass of its settings."""

    max_steps: int

    @abstractmethod
    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """The state before the first step: tensors with the batch as first dimension."""

    @abstractmethod
    def step(
        self, x: Tensor, residual: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next iterate and state from points and residuals, both ``(N, *event)``."""


@final
@dataclass(frozen=True)
class Solution:
    """The outcome of a solve, for a batch of B samples.

    Attributes:
        value: x, ``(B, *event)``.
        steps: Evaluations of g for each sample, ``(B,)`` integers.
        error: Certified upper bound of the distance to the exact solution, ``(B,)``, rounding
            included. It exceeds the tolerance only where the floating-point format allows no
            better.
    """

    value: Tensor
    steps: Tensor
    error: Tensor


@torch.no_grad()
def solve(
    g: Map, y: Tensor, *, lipschitz: float, tol: float, solver: Solver, context: str = ""
) -> Solution:
    """Solves x + g(x) = y for each sample to a certified error of at most tol.

    A sample stops as soon as its *bound* is below tol, or when its residual is down to the
    rounding of its own evaluation and no longer shrinks; it then no longer costs anything.

    Arguments:
        g: The contraction, for any subset of the samples.
        y: ``(B, *event)``.
        lipschitz: Certified upper bound of its Lipschitz constant.
        tol: Largest distance from the solution, Euclidean. 0 asks for all that the format allows.
        solver: Proposes the iterates.
        context: What is being inverted, for messages.

    Raises:
        NotContractiveError: lipschitz is not below 1.
        InversionError: a value is not finite, or the solver ran out of steps.
    """
    if not lipschitz < 1:
        raise NotContractiveError(
            f"{context or 'the map'} has a certified Lipschitz bound of {lipschitz:.4g}, not "
            "below 1: its inverse need not exist. Call flow.enforce(), which rescales the layers"
        )
    _require_finite(y, "what is to be inverted", context)
    value = y.clone()
    steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
    error = torch.full((len(y),), torch.inf, dtype=y.dtype, device=y.device)
    active = torch.arange(len(y), device=y.device)
    x, target, state = y, y, solver.start(y)
    scale = norm_per_sample(y)
    previous = torch.full_like(scale, torch.inf)
    if len(y) == 0:
        return Solution(value, steps, error)
    for step in range(1, solver.max_steps + 1):
        image, magnitude = g(x, active)
        residual = target - image - x
        size = norm_per_sample(residual)
        rounding = norm_per_sample(x).add_(magnitude).add_(scale)
        rounding *= ROUNDING * torch.finfo(y.dtype).eps
        bound = (lipschitz * size + rounding) / (1 - lipschitz)
        # Below the rounding a residual may still shrink: the last digits are worth a few steps.
        floored = (size <= rounding) & (size >= STAGNATION * previous)
        done = (bound <= tol) | floored | (size == 0)
        if bool(done.any()):
            finished = active[done]
            value[finished] = target[done] - image[done]
            steps[finished] = step
            error[finished] = bound[done]
            keep = ~done
            active, x, target = active[keep], x[keep], target[keep]
            residual, scale, size = residual[keep], scale[keep], size[keep]
            state = tuple(s[keep] for s in state)
            if len(active) == 0:
                return Solution(value, steps, error)
        if not bool(torch.isfinite(size).all()):
            raise InversionError(_not_finite("the residual", context, step))
        previous = size
        x, state = solver.step(x, residual, state)
    raise InversionError(
        f"{len(active)} of {len(y)} samples missed the tolerance {tol:.3g} after "
        f"{solver.max_steps} steps{_of(context)}: largest residual {float(size.max()):.3g}, "
        f"certified Lipschitz bound {lipschitz:.6f}. Allow more steps, a larger tolerance, or "
        "compute in float64 (flow.double())"
    )


def _require_finite(x: Tensor, what: str, context: str) -> None:
    if not bool(torch.isfinite(x).all()):
        raise InversionError(_not_finite(what, context, 0))


def _not_finite(what: str, context: str, step: int) -> str:
    return (
        f"{what} is not finite at step {step}{_of(context)}: the input or the weights hold NaN or "
        "infinity"
    )


def _of(context: str) -> str:
    return f" ({context})" if context else ""
