r"""The driver that inverts :math:`y = x + g(x)` for a contraction g, sample by sample.

The driver owns the loop, the tolerance, the error bounds, the check for finite values, and which
samples still run; a `Solver` only proposes the next iterate. `iresflow.solvers.residuals` says
what is certified, and why no proposal can do harm.

**Two types of float.** In float32 the bound is far above the error. So a map may come in two
types. The driver iterates in the narrow one until the residual is down to what rounding makes of
it, then refines as one refines the solution of a linear system (Higham, *Accuracy and Stability of
Numerical Algorithms*, chapter 12): the wide type forms the residual and certifies, and the
correction d of :math:`d + J d = r` is solved in the narrow one, whose rounding is relative to d.
That is Newton's method, so one correction mostly suffices, and the wide type, which is several
times dearer, is used twice. A correction that leaves more than :math:`L |r|` is dropped, and for
good: the wide type then goes on alone, from the best point.

**Compiled iterations.** Where a map has one (`iresflow.solution.FusedSolve`), each sample goes
through its whole iteration at once, under the same rules. Its last evaluations are in the wide
type, and go on with the moves that the narrow one has left: on a CPU, that costs as much as
corrections do, and needs no products.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor

from iresflow.errors import InversionError, NotContractiveError
from iresflow.solution import FusedSolve, MixedIteration, Solution
from iresflow.solvers.base import JacobianProduct, RefinableMap, RoundedMap, Solver
from iresflow.solvers.iteration import iterate
from iresflow.solvers.residuals import Point, Results, Task, not_finite, positions
from iresflow.tensors import norm_per_sample

__all__ = ["solve"]

NEAR = 1.5
"""A bound of at most so many tolerances mostly meets it after one more fixed-point step."""


@torch.no_grad()
def solve(
    maps: Sequence[RoundedMap],
    y: Tensor,
    *,
    lipschitz: float,
    tol: float,
    solver: Solver,
    context: str = "the map",
    fused: FusedSolve | None = None,
) -> Solution:
    """Solves x + g(x) = y for each sample to a certified error of at most tol.

    A sample stops as soon as its *bound* is below tol, or when its residual is down to the
    rounding of its own evaluation and no longer shrinks; it then no longer costs anything.

    Arguments:
        maps: The contraction in one type of float; or a `RefinableMap` in a narrow one, and the
            same map in a wide one, which certifies.
        y: ``(B, *event)``.
        lipschitz: Certified upper bound of its Lipschitz constant.
        tol: Largest distance from the solution, Euclidean. 0 asks for all that the format allows.
        solver: Proposes the iterates. Its ``max_steps`` count the evaluations of g in both types;
            a correction may take as many products with J.
        context: What is being inverted, for messages.
        fused: The same by a compiled iteration, for solvers that mix moves. What it can't certify
            is solved anew, which says why.

    Raises:
        NotContractiveError: lipschitz is not below 1.
        InversionError: a value is not finite, the solver ran out of steps, or two evaluations of g
            lie further apart than the Lipschitz constant allows.
    """
    if not math.isfinite(lipschitz):
        raise NotContractiveError(
            f"{context} has no Lipschitz bound: its parameters hold NaN or infinity"
        )
    if not lipschitz < 1:
        raise NotContractiveError(
            f"{context} has a certified Lipschitz bound of {lipschitz:.4g}, not below 1: its "
            "inverse need not exist. Call the model's enforce(), which rescales layers"
        )
    if not bool(torch.isfinite(y).all()):
        raise InversionError(not_finite("what is to be inverted", context, 0))
    mixed = solver.mixed()
    if fused is not None and mixed is not None:
        found = fused(y, MixedIteration(lipschitz, tol, mixed, solver.max_steps))
        if found is not None:
            return found
    *narrow, wide = maps
    task = Task(lipschitz, tol, solver, context)
    steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
    if not narrow:
        return iterate(task, wide, y, y, steps, certify=True)
    x = iterate(task, narrow[0], y, y, steps, certify=False).value
    return _refine(task, cast(RefinableMap, narrow[0]), wide, y, x, steps)


def _refine(
    task: Task, narrow: RefinableMap, wide: RoundedMap, y: Tensor, x: Tensor, steps: Tensor
) -> Solution:
    """Certifies x in the wide type, with corrections from the narrow one where due."""
    target, x = y.to(wide.dtype), x.to(wide.dtype)
    results = Results(x)
    rows = torch.arange(len(x), device=x.device)
    scale = norm_per_sample(target)
    last: Point | None = None
    left: list[tuple[Tensor, Tensor]] = []  # rows that no correction helps, and their best points
    step = 0
    while len(rows):
        step += 1
        image, magnitude = wide(x, rows)
        point = Point.of(target, scale, x, image, magnitude)
        steps[rows] += 1
        excess, poor = torch.zeros_like(point.size), torch.zeros_like(rows, dtype=torch.bool)
        if last is not None:
            move, change = point.x - last.x, point.residual - last.residual
            excess = task.excess_of_images(move, change, point, last)
            # Newton's method may overshoot, a fixed-point step never does.
            poor = point.size > task.lipschitz * last.size
        bound, floor = task.bounds(point.size, point.rounding)
        done = (bound <= task.tol) | (poor & (point.size <= point.rounding)) | (point.size == 0)
        late = ((steps[rows] > task.solver.max_steps) & ~done).any()
        # One more fixed-point step may be all that is due.
        newton = (bound > NEAR * task.tol) & ~done & ~poor
        flags = (done.any(), poor.any(), late, newton.any())
        some_done, some_poor, too_late, some_newton = task.check(step, point, excess, *flags)
        if too_late:
            raise task.out_of_steps(int((~done).sum()), len(y), point.size)
        if some_done:
            ended = positions(done)
            value = point.x[ended] + point.residual[ended]
            results.settle(rows[ended], value, bound[ended], floor[ended])
        keep = ~done
        if some_poor and last is not None:
            dropped = positions(poor & keep)
            left.append((rows[dropped], last.x[dropped] + last.residual[dropped]))
            keep = keep & ~poor
        if some_done or some_poor:
            kept = positions(keep)
            rows, target, scale, newton = rows[kept], target[kept], scale[kept], newton[kept]
            point = point.at(kept)
        x = point.x + point.residual
        if some_newton:
            chosen = positions(newton)
            some = rows[chosen]
            x[chosen], used = _corrected(task, narrow, point.at(chosen), some)
            steps[some] += used
        last = point
    if left:
        rows = torch.cat([some for some, _ in left])
        start = torch.cat([x for _, x in left])
        part = iterate(task, _Some(wide, rows), y[rows], start, steps[rows], certify=True)
        results.settle(rows, part.value, part.error, part.floor)
        steps[rows] = part.steps
    return Solution(results.value, steps, results.error, results.floor)


def _corrected(
    task: Task, narrow: RefinableMap, point: Point, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """x + d for the d of d + J d = r, which is found in the narrow type; and what it cost."""
    r = point.residual
    jacobian = narrow.jacobian(point.x.to(narrow.dtype), rows)
    product = JacobianProduct(jacobian, "jvp", len(r), narrow.dtype)
    used = torch.ones_like(rows)  # the linearization costs as an evaluation does
    found = iterate(task, product, r, r, used, certify=False)
    return point.x + found.value.to(point.x.dtype), used


@final
@dataclass(frozen=True)
class _Some:
    """A map for some samples of a batch, which are counted anew."""

    g: RoundedMap
    rows: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.g(x, self.rows[index])
