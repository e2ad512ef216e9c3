"""Solving in one type of float: a solver proposes, residuals decide, samples end one by one."""

import torch
from torch import Tensor

from iresflow.solution import Solution
from iresflow.solvers.base import RoundedMap
from iresflow.solvers.residuals import Point, Results, Task, positions
from iresflow.tensors import norm_per_sample, per_sample

__all__ = ["iterate"]

STAGNATION = 0.9
"""A fixed-point step that keeps more than this share of the residual no longer shrinks it."""

NOISE = 3.0
"""What rounding leaves of a residual in practice, in eps times the size of g, and 1 / 3 of that
times the size of x: the narrow type goes no further. Twice what trained branches of convolutions
have. It is about effort only: what is certified counts a proven bound of the rounding."""


def iterate(
    task: Task, g: RoundedMap, y: Tensor, x: Tensor, steps: Tensor, *, certify: bool
) -> Solution:
    """Solves in one type of float from x on, and adds to the steps.

    With ``certify`` the rounding counts into the error. Without, a sample ends one evaluation
    earlier, at a point whose residual is only expected to be small enough, or as small as rounding
    commonly makes it: whoever certifies evaluates that point.
    """
    target, x = y.to(g.dtype), x.to(g.dtype)
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
        image, magnitude = g(x, rows)
        point = Point.of(target, scale, x, image, magnitude)
        steps[rows] += 1
        move = change = None
        excess, rate = torch.zeros_like(point.size), torch.full_like(point.size, lipschitz)
        kept, stuck = plain, torch.zeros_like(plain)
        if last is not None and best is not None:
            move, change = point.x - last.x, point.residual - last.residual
            excess = task.excess_of_images(move, change, point, last)
            kept = plain | (point.size <= lipschitz * best.size)
            stuck = plain & (point.size >= max(STAGNATION, lipschitz) * best.size)
            rate = torch.where(kept, (point.size / last.size).clamp(max=lipschitz), rate)
        bound, floor = task.bounds(point.size, point.rounding)
        done = (stuck & (point.size <= point.rounding)) | (point.size == 0)
        if certify:
            done = done | (bound <= task.tol)
        else:
            noise = _noise(target, x)
            expected, _ = task.bounds(rate * point.size, torch.zeros_like(noise))
            done = done | (expected <= task.tol) | (rate * point.size <= noise)
        # The one wait for the device.
        some_done, all_kept = task.check(step, point, excess, done.any(), kept.all())
        best = point if best is None or all_kept else point.where(kept, best)
        last = point
        proposal, trusted = proposer.propose(point.residual, move, change), kept & ~plain
        x, plain = task.next(proposal, last, best, kept)
        if some_done:
            value = point.x + point.residual
            if not certify:
                # Nobody has evaluated it: only whose last proposal was good is trusted.
                value = torch.where(per_sample(trusted, x), x, value)
            ended, keep = positions(done), positions(~done)
            results.settle(rows[ended], value[ended], bound[ended], floor[ended])
            rows, target, scale, x, plain = (t[keep] for t in (rows, target, scale, x, plain))
            best = best.at(keep)
            last = best if all_kept else last.at(keep)
            proposer.keep(keep)
    if len(rows):
        raise task.out_of_steps(len(rows), len(y), None if last is None else last.size)
    return Solution(results.value, steps, results.error, results.floor)


def _noise(target: Tensor, x: Tensor) -> Tensor:
    """The size of a residual that is nothing but rounding, as a rule, ``(N,)``."""
    eps = torch.finfo(x.dtype).eps
    return eps * (NOISE * norm_per_sample(target - x) + norm_per_sample(x))
