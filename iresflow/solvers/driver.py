r"""The driver that inverts :math:`y = x + g(x)` for a contraction g, sample by sample.

The driver owns the loop, the tolerance, the error bounds, the check for finite values, and which
samples still run; a `Solver` only proposes the next iterate.

**What is certified.** With a certified :math:`L \ge \operatorname{Lip}(g)`, :math:`L < 1`, and the
residual :math:`r = y - g(x) - x`, the solution :math:`x^*` obeys
:math:`|x - x^*| \le |r| / (1 - L)`, and the fixed-point iterate :math:`x + r` obeys
:math:`|x + r - x^*| \le L |r| / (1 - L)` (both from the proof of Lemma 4.5 of the thesis), however
x was found. So that iterate is what is returned, with that bound. The rounding of r itself, for
which the map gives a bound, is added to r, so the error is certified as it was computed.

**Why no proposal can do harm.** The fixed-point step :math:`x + r` always leaves a residual of at
most :math:`L |r|`. The driver keeps the best point so far. A proposal further from it than
:math:`|r| / (1 - L)`, the radius of the ball that holds the solution, is not evaluated (nor one
that is not finite): the fixed-point step takes its place. An evaluated proposal that leaves more
than :math:`L |r|` is dropped, and the fixed-point step from the best point is next. So of any two
evaluations in a row at least one shrinks the residual by L: :math:`2 k + 1` evaluations leave at
most :math:`L^k` of it, and the worst case is twice that of the plain iteration. A correction
(below) that leaves more than :math:`L |r|` is dropped too, for good: the wide type then goes on
alone, from the best point, with proposals of which the same holds.

**Two types of float.** In float32 the bound is far above the error. So a map may come in two
types. The driver iterates in the narrow one until the residual is down to what rounding makes of
it, then refines as one refines the solution of a linear system (Higham, *Accuracy and Stability of
Numerical Algorithms*, chapter 12): the wide type forms the residual and certifies, and the
correction d of :math:`d + J d = r` is solved in the narrow one, whose rounding is relative to d.
That is Newton's method, so one correction mostly suffices, and the wide type, which is several
times dearer, is used twice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from iresflow.errors import InversionError, NotContractiveError
from iresflow.solvers.base import Arithmetic, Solution, Solver, product_map
from iresflow.solvers.points import (
    Point,
    Results,
    Task,
    evaluate,
    excess_of_images,
    not_finite,
    spread,
)
from iresflow.tensors import full_precision, norm_per_sample

__all__ = ["solve"]

STAGNATION = 0.9
"""A fixed-point step that keeps more than this share of the residual no longer shrinks it."""

NOISE = 3.0
"""What rounding leaves of a residual in practice, in eps times the size of g, and 1 / 3 of that
times the size of x: the narrow type goes no further. Twice what trained branches of convolutions
have. It is about effort only: what is certified counts a proven bound of the rounding."""

NEAR = 1.5
"""A bound of at most so many tolerances mostly meets it behind one more fixed-point step."""


@torch.no_grad()
@full_precision()
def solve(
    arithmetics: Sequence[Arithmetic],
    y: Tensor,
    *,
    lipschitz: float,
    tol: float,
    solver: Solver,
    context: str = "the map",
) -> Solution:
    """Solves x + g(x) = y for each sample to a certified error of at most tol.

    A sample stops as soon as its *bound* is below tol, or when its residual is down to the
    rounding of its own evaluation and no longer shrinks; it then no longer costs anything.

    Arguments:
        arithmetics: The contraction in one type of float, or in a narrow one and a wide one, both
            roundings of the same map. The last one certifies.
        y: ``(B, *event)``.
        lipschitz: Certified upper bound of its Lipschitz constant.
        tol: Largest distance from the solution, Euclidean. 0 asks for all that the format allows.
        solver: Proposes the iterates. Its ``max_steps`` count the evaluations of g in both types;
            a correction may take as many products with J.
        context: What is being inverted, for messages.

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
            "inverse need not exist. Call flow.enforce(), which rescales the layers"
        )
    if not bool(torch.isfinite(y).all()):
        raise InversionError(not_finite("what is to be inverted", context, 0))
    *narrow, wide = arithmetics
    task = Task(lipschitz, tol, solver, context)
    steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
    if not narrow:
        return _iterate(task, wide, y, y, steps, certify=True)
    x = _iterate(task, narrow[0], y, y, steps, certify=False).value
    if narrow[0].linearize is None:
        return _iterate(task, wide, y, x, steps, certify=True)
    return _refine(task, narrow[0], wide, y, x, steps)


def _iterate(
    task: Task,
    arithmetic: Arithmetic,
    y: Tensor,
    x: Tensor,
    steps: Tensor,
    *,
    certify: bool,
) -> Solution:
    """Solves in one arithmetic from x on, and adds to the steps.

    With ``certify`` the rounding counts into the error. Without, a sample ends one evaluation
    earlier, at a point whose residual is only expected to be small enough, or as small as rounding
    commonly makes it: whoever certifies evaluates that point.
    """
    target, x = y.to(arithmetic.dtype), x.to(arithmetic.dtype)
    lipschitz = task.lipschitz
    results, proposer = Results(x), task.solver.begin()
    rows = torch.arange(len(x), device=x.device)
    scale = norm_per_sample(target)
    plain = torch.ones_like(rows, dtype=torch.bool)  # the start is held against nothing
    best = last = None
    budget = task.solver.max_steps - (int(steps.max()) if len(x) else 0)
    for step in range(1, budget + 1):
        if len(rows) == 0:
            break
        point = evaluate(arithmetic, target, scale, x, rows)
        steps[rows] += 1
        move = change = None
        excess, rate = torch.zeros_like(point.size), torch.full_like(point.size, lipschitz)
        kept, stuck = plain, torch.zeros_like(plain)
        if last is not None and best is not None:
            move, change = point.x - last.x, point.residual - last.residual
            excess = excess_of_images(task, move, change, point, last)
            kept = plain | (point.size <= lipschitz * best.size)
            stuck = plain & (point.size >= max(STAGNATION, lipschitz) * best.size)
            rate = torch.where(kept, (point.size / last.size).clamp(max=lipschitz), rate)
        bound, floor = task.bounds(point.size, point.rounding)
        done = (stuck & (point.size <= point.rounding)) | (point.size == 0)
        if certify:
            done = done | (bound <= task.tol)
        else:
            noise = _noise(arithmetic, target, x)
            expected, _ = task.bounds(rate * point.size, torch.zeros_like(noise))
            done = done | (expected <= task.tol) | (rate * point.size <= noise)
        flags = [torch.isfinite(point.size).all(), (excess > 0).any(), done.any(), kept.all()]
        # The one wait for the device.
        finite, violated, some_done, all_kept = torch.stack(flags).tolist()
        task.check(finite, excess, violated, step)
        best = point if best is None or all_kept else point.where(kept, best)
        last = point
        proposal, trusted = proposer.propose(point.residual, move, change), kept & ~plain
        x, plain = _next(task, proposal, last, best, kept)
        if some_done:
            value = point.x + point.residual
            if not certify:
                # Nobody has evaluated it: only whose last proposal was good is trusted.
                value = torch.where(spread(trusted, x), x, value)
            results.settle(rows[done], value[done], bound[done], floor[done])
            keep = ~done
            rows, target, scale, x, plain = (t[keep] for t in (rows, target, scale, x, plain))
            best = best.at(keep)
            last = best if all_kept else last.at(keep)
            proposer.keep(keep)
    if len(rows):
        raise task.out_of_steps(len(rows), len(y), None if last is None else last.size)
    return Solution(results.value, steps, results.error, results.floor)


def _noise(arithmetic: Arithmetic, target: Tensor, x: Tensor) -> Tensor:
    """The size of a residual that is nothing but rounding, as a rule, ``(N,)``."""
    eps = torch.finfo(arithmetic.dtype).eps
    return eps * (NOISE * norm_per_sample(target - x) + norm_per_sample(x))


def _next(
    task: Task, proposal: Tensor | None, last: Point, best: Point, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """The next points, and which of them are fixed-point steps from the best ones.

    Arguments:
        proposal: A move from the last points, or None for none.
        kept: Which of the last points are the best ones.
    """
    step = best.x + best.residual
    if proposal is None:
        return step, torch.ones_like(kept)
    # False where the proposal is not finite.
    usable = kept & (norm_per_sample(proposal) <= last.size / (1 - task.lipschitz))
    return torch.where(spread(usable, step), last.x + proposal, step), ~usable


def _refine(
    task: Task, narrow: Arithmetic, wide: Arithmetic, y: Tensor, x: Tensor, steps: Tensor
) -> Solution:
    """Certifies x in the wide arithmetic, with corrections from the narrow one where due."""
    target, x = y.to(wide.dtype), x.to(wide.dtype)
    results = Results(x)
    rows = torch.arange(len(x), device=x.device)
    scale = norm_per_sample(target)
    last: Point | None = None
    left: list[tuple[Tensor, Tensor]] = []  # rows that no correction helps, and their best points
    step = 0
    while len(rows):
        step += 1
        point = evaluate(wide, target, scale, x, rows)
        steps[rows] += 1
        excess, poor = torch.zeros_like(point.size), torch.zeros_like(rows, dtype=torch.bool)
        if last is not None:
            move, change = point.x - last.x, point.residual - last.residual
            excess = excess_of_images(task, move, change, point, last)
            # Newton's method may overshoot, a fixed-point step never does.
            poor = point.size > task.lipschitz * last.size
        bound, floor = task.bounds(point.size, point.rounding)
        done = (bound <= task.tol) | (poor & (point.size <= point.rounding)) | (point.size == 0)
        flags = [torch.isfinite(point.size).all(), (excess > 0).any(), done.any(), poor.any()]
        flags.append(((steps[rows] > task.solver.max_steps) & ~done).any())
        finite, violated, some_done, some_poor, late = torch.stack(flags).tolist()
        task.check(finite, excess, violated, step)
        if late:
            raise task.out_of_steps(int((~done).sum()), len(y), point.size)
        if some_done:
            value = point.x[done] + point.residual[done]
            results.settle(rows[done], value, bound[done], floor[done])
        keep = ~done
        if some_poor and last is not None:
            dropped = poor & keep
            left.append((rows[dropped], last.x[dropped] + last.residual[dropped]))
            keep = keep & ~poor
        if some_done or some_poor:
            rows, target, scale, bound = rows[keep], target[keep], scale[keep], bound[keep]
            point = point.at(keep)
        # One more fixed-point step may be all that is due.
        newton = bound > NEAR * task.tol
        x = point.x + point.residual
        if bool(newton.any()):
            x[newton] = _corrected(task, narrow, point.at(newton), rows[newton], steps)
        last = point
    if left:
        rows = torch.cat([some for some, _ in left])
        start = torch.cat([x for _, x in left])
        _finish(task, wide, y, start, rows, steps, results)
    return Solution(results.value, steps, results.error, results.floor)


def _finish(
    task: Task,
    wide: Arithmetic,
    y: Tensor,
    x: Tensor,
    rows: Tensor,
    steps: Tensor,
    results: Results,
) -> None:
    """Solves for the samples with indices ``rows`` from x on in the wide arithmetic alone."""

    def some(points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return wide.g(points, rows[index])

    used = steps[rows]
    part = _iterate(task, Arithmetic(some, wide.dtype), y[rows], x, used, certify=True)
    results.settle(rows, part.value, part.error, part.floor)
    steps[rows] = part.steps


def _corrected(
    task: Task, narrow: Arithmetic, point: Point, rows: Tensor, steps: Tensor
) -> Tensor:
    """The points x + d with d of d + J d = r, for the samples with indices ``rows``."""
    assert narrow.linearize is not None
    products = narrow.linearize(point.x.to(narrow.dtype), rows)
    linear = Arithmetic(product_map(lambda p, v: p.jvp(v), products, len(rows)), narrow.dtype)
    used = torch.ones_like(rows)  # the linearization costs as much as an evaluation
    residual = point.residual
    solution = _iterate(task, linear, residual, residual, used, certify=False)
    steps[rows] += used
    return point.x + solution.value.to(point.x.dtype)
