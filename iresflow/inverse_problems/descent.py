r"""Minimisation over a box by spectral projected gradients, each sample of a batch on its own.

The direction is :math:`d = P(x - \lambda g) - x` with the gradient g, the projection P and the
Barzilai-Borwein step :math:`\lambda`. A point :math:`x + t d` is taken if its value lies below the
largest of the last `MEMORY` ones by a share of the predicted decrease, and else t is halved. A
value that is not finite is never taken. As both ends are in the box, so is every point between.

References:
    Nonmonotone spectral projected gradient methods on convex sets (Birgin, Martinez and Raydan,
    2000), algorithm 2.2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.tensors import norm_per_sample, per_sample, sum_per_sample

__all__ = ["Evaluation", "Function", "Minimum", "ProjectedGradient"]

MEMORY = 8
"""Values that a new one is compared with: the largest of so many."""

SUFFICIENT = 1e-4
"""Share of the predicted decrease that a step has to reach."""

HALVINGS = 40
"""Of a step, before a sample counts as stalled."""

ROUNDING = 32.0
"""Error of a value, in units of eps of its parts' sizes."""

VANISHED = 1e-3
"""Gradients count as vanished where they are below this share of those at the start."""


@final
@dataclass(frozen=True)
class Evaluation:
    """A sum of functions at some points.

    Attributes:
        value: ``(N,)``.
        gradient: ``(N, *event)``.
        size: ``(N,)``, the sizes of the summands' values together: rounding is in units of them.
        pull: ``(N,)``, the norms of the summands' gradients together.
    """

    value: Tensor
    gradient: Tensor
    size: Tensor
    pull: Tensor


Function = Callable[[Tensor, Tensor], Evaluation]
"""Of points ``(N, *event)`` and the numbers ``(N,)`` of the samples that they belong to."""


@final
@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        point: ``(B, *event)``.
        value: ``(B,)``.
        criterion: ``(B,)``: the norm of the gradient, without what the box holds back, divided by
            the sum of the norms of the summands' gradients (or by a thousandth of that at the
            start, where that is more: for minima at which all of them vanish).
        converged: ``(B,)`` booleans, whether the criterion is at most the tolerance.
        iterations: ``(B,)`` steps taken.
        evaluations: ``(B,)`` values and gradients computed.
    """

    point: Tensor
    value: Tensor
    criterion: Tensor
    converged: Tensor
    iterations: Tensor
    evaluations: Tensor


@final
@dataclass(frozen=True)
class ProjectedGradient:
    """Spectral projected gradients, until a criterion or a number of steps is met.

    Arguments:
        tol: Of the criterion, see `Minimum`; above 0.
        iterations: Steps at most, at least 1.

    Raises:
        ValueError: a tolerance or a number of steps out of range.
    """

    tol: float = 1e-3
    iterations: int = 500

    def __post_init__(self) -> None:
        if not self.tol > 0:
            raise ValueError(f"tol must be positive, got {self.tol}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def minimize(
        self, function: Function, start: Tensor, project: Callable[[Tensor], Tensor]
    ) -> Minimum:
        """A local minimum of each sample's function over a box.

        Arguments:
            function: Of points ``(N, *event)`` and the numbers ``(N,)`` of their samples.
            start: ``(B, *event)``; its nearest point of the box is where the descent begins.
            project: The nearest point of the box.

        Raises:
            ValueError: the value or the gradient at the start is not finite.
        """
        state = _State(function, project(start.detach()), project, self.tol)
        for _ in range(self.iterations):
            running = (~state.converged & ~state.stalled).nonzero()[:, 0]
            if len(running) == 0:
                break
            state.step(running)
        return Minimum(
            state.x,
            state.value,
            state.criterion,
            state.converged,
            state.iterations,
            state.evaluations,
        )


@final
class _State:
    """Where all samples are."""

    def __init__(
        self,
        function: Function,
        start: Tensor,
        project: Callable[[Tensor], Tensor],
        tol: float,
    ) -> None:
        self._function = function
        self._project = project
        self._tol = tol
        every = torch.arange(len(start), device=start.device)
        first = function(start, every)
        finite = first.value.isfinite() & first.gradient.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            raise ValueError(
                f"sample {int((~finite).nonzero()[0, 0])} has no finite value and gradient at the "
                "start of the optimisation; pass another start"
            )
        self.x = start
        self.value = first.value
        self.gradient = first.gradient
        self.pull = first.pull
        self._least_pull = VANISHED * first.pull
        # The first step moves no pixel by more than a hundredth.
        largest = first.gradient.flatten(1).abs().amax(1)
        self.length = 0.01 / largest.clamp_min(torch.finfo(start.dtype).tiny)
        self.memory = first.value[None].repeat(MEMORY, 1)
        self.iterations = torch.zeros_like(every)
        self.evaluations = torch.ones_like(every)
        self.stalled = torch.zeros_like(every, dtype=torch.bool)
        self.criterion = torch.full_like(first.value, torch.inf)
        self._judge(every)

    @property
    def converged(self) -> Tensor:
        return self.criterion <= self._tol

    def step(self, running: Tensor) -> None:
        """One step of the samples ``running`` (N,), or the finding that one has stalled."""
        x, gradient = self.x[running], self.gradient[running]
        trial = self._project(x - per_sample(self.length[running], x) * gradient)
        direction = trial - x
        slope = sum_per_sample(gradient * direction)
        share = torch.ones_like(slope)
        pending = torch.arange(len(running), device=x.device)
        for _ in range(HALVINGS):
            if len(pending) == 0:
                break
            rows = running[pending]
            point = x[pending] + per_sample(share[pending], x) * direction[pending]
            found = self._function(point, rows)
            self.evaluations[rows] += 1
            slack = ROUNDING * torch.finfo(x.dtype).eps * found.size
            least = self.memory[:, rows].amax(0) + SUFFICIENT * share[pending] * slope[pending]
            taken = (found.value <= least + slack) & found.gradient.flatten(1).isfinite().all(1)
            self._take(rows[taken], point[taken], _some(found, taken))
            pending = pending[~taken]
            share[pending] /= 2
        self.stalled[running[pending]] = True

    def _take(self, rows: Tensor, point: Tensor, found: Evaluation) -> None:
        moved = point - self.x[rows]
        bent = sum_per_sample(moved * (found.gradient - self.gradient[rows]))
        square = sum_per_sample(moved.square())
        # Where the function curves down along the step, a longer one.
        longer = torch.where(bent > 0, square / bent, 10 * self.length[rows])
        self.stalled[rows] = square == 0
        self.length[rows] = longer.clamp(1e-12, 1e12)
        self.x[rows] = point
        self.value[rows] = found.value
        self.gradient[rows] = found.gradient
        self.pull[rows] = found.pull
        self.iterations[rows] += 1
        self.memory[self.iterations[rows] % MEMORY, rows] = found.value
        self._judge(rows)

    def _judge(self, rows: Tensor) -> None:
        x, gradient = self.x[rows], self.gradient[rows]
        # A pixel at an end of the box that the descent would leave it by has nothing left to do.
        tiny = gradient.sign() * torch.finfo(x.dtype).eps * (1 + x.abs())
        held = self._project(x - tiny) == x
        left = norm_per_sample(torch.where(held, 0, gradient))
        pull = torch.maximum(self.pull[rows], self._least_pull[rows])
        self.criterion[rows] = torch.where(left == 0, 0, left / pull)


def _some(found: Evaluation, taken: Tensor) -> Evaluation:
    return Evaluation(
        found.value[taken], found.gradient[taken], found.size[taken], found.pull[taken]
    )
