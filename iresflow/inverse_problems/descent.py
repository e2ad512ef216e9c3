r"""Minimisation over a box by projected quasi-Newton steps, each sample of a batch on its own.

Entries that a gradient step would carry out of the box go to its end; the others take the step
:math:`d = -H g` with the gradient g and the estimate H of the inverse Hessian that the past steps
give. The point :math:`P(x + t d)`, with the projection P, is taken if its value lies below the
largest of the last `COMPARED` ones by a share of the predicted decrease, and else t is halved. A
value that is not finite is never taken, and every point lies in the box.

References:
    Projected Newton methods for optimization problems with simple constraints (Bertsekas, 1982):
    the two kinds of entries. Optimizing costly functions with simple constraints: a limited-memory
    projected quasi-Newton algorithm (Schmidt et al., 2009). A nonmonotone line search technique
    for Newton's method (Grippo, Lampariello and Lucidi, 1986).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.inverse_problems.curvature import Curvature
from iresflow.tensors import norm_per_sample, per_sample, sum_per_sample

__all__ = ["Evaluation", "Function", "Minimum", "ProjectedQuasiNewton"]

COMPARED = 8
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
class ProjectedQuasiNewton:
    """Projected quasi-Newton steps, until a criterion or a number of steps is met.

    Arguments:
        tol: Of the criterion, see `Minimum`; above 0.
        iterations: Steps at most, at least 1.
        memory: Past steps that tell of the curvature, at least 1.

    Raises:
        ValueError: a number out of range.
    """

    tol: float = 1e-3
    iterations: int = 500
    memory: int = 20

    def __post_init__(self) -> None:
        if not self.tol > 0:
            raise ValueError(f"tol must be positive, got {self.tol}")
        for name in ("iterations", "memory"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")

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
        state = _State(function, project(start.detach()), project, self)
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
        settings: ProjectedQuasiNewton,
    ) -> None:
        self._function = function
        self._project = project
        self._tol = settings.tol
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
        self.curvature = Curvature(settings.memory, start)
        self.recent = first.value[None].repeat(COMPARED, 1)
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
        direction = self._direction(running)
        share = torch.ones_like(self.value[running])
        pending = torch.arange(len(running), device=x.device)
        for _ in range(HALVINGS):
            if len(pending) == 0:
                break
            rows = running[pending]
            point = self._project(x[pending] + per_sample(share[pending], x) * direction[pending])
            found = self._function(point, rows)
            self.evaluations[rows] += 1
            slope = sum_per_sample(gradient[pending] * (point - x[pending])).clamp_max(0)
            slack = ROUNDING * torch.finfo(x.dtype).eps * found.size
            least = self.recent[:, rows].amax(0) + SUFFICIENT * slope
            taken = (found.value <= least + slack) & found.gradient.flatten(1).isfinite().all(1)
            self._take(rows[taken], point[taken], _some(found, taken))
            pending = pending[~taken]
            share[pending] /= 2
        self.stalled[running[pending]] = True

    def _direction(self, rows: Tensor) -> Tensor:
        """To the end of the box where the gradient leads out of it, quasi-Newton elsewhere."""
        x, gradient, length = self.x[rows], self.gradient[rows], self.length[rows]
        plain = x - per_sample(length, x) * gradient
        ends = self._project(plain)
        free = ends == plain
        newton = -self.curvature.solve(rows, gradient, free, length)
        return torch.where(free, newton, ends - x)

    def _take(self, rows: Tensor, point: Tensor, found: Evaluation) -> None:
        moved, change = point - self.x[rows], found.gradient - self.gradient[rows]
        bent = sum_per_sample(moved * change)
        # Where the function curves down along the step, a longer one.
        longer = torch.where(
            bent > 0, bent / sum_per_sample(change.square()), 10 * self.length[rows]
        )
        self.stalled[rows] = sum_per_sample(moved.square()) == 0
        self.length[rows] = longer.clamp(1e-12, 1e12)
        self.curvature.learn(rows, moved, change)
        self.x[rows] = point
        self.value[rows] = found.value
        self.gradient[rows] = found.gradient
        self.pull[rows] = found.pull
        self.iterations[rows] += 1
        self.recent[self.iterations[rows] % COMPARED, rows] = found.value
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
