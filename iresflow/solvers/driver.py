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
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor

from iresflow.errors import InversionError, NotContractiveError
from iresflow.solvers.base import JacobianProduct, RefinableMap, RoundedMap, Solution, Solver
from iresflow.tensors import norm_per_sample

__all__ = ["solve"]

STAGNATION = 0.9
"""A fixed-point step that keeps more than this share of the residual no longer shrinks it."""

NOISE = 3.0
"""What rounding leaves of a residual in practice, in eps times the size of g, and 1 / 3 of that
times the size of x: the narrow type goes no further. Twice what trained branches of convolutions
have. It is about effort only: what is certified counts a proven bound of the rounding."""

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
        raise InversionError(_not_finite("what is to be inverted", context, 0))
    *narrow, wide = maps
    task = _Task(lipschitz, tol, solver, context)
    steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
    if not narrow:
        return _iterate(task, wide, y, y, steps, certify=True)
    x = _iterate(task, narrow[0], y, y, steps, certify=False).value
    return _refine(task, cast(RefinableMap, narrow[0]), wide, y, x, steps)


def _iterate(
    task: "_Task", g: RoundedMap, y: Tensor, x: Tensor, steps: Tensor, *, certify: bool
) -> Solution:
    """Solves in one type of float from x on, and adds to the steps.

    With ``certify`` the rounding counts into the error. Without, a sample ends one evaluation
    earlier, at a point whose residual is only expected to be small enough, or as small as rounding
    commonly makes it: whoever certifies evaluates that point.
    """
    target, x = y.to(g.dtype), x.to(g.dtype)
    lipschitz = task.lipschitz
    results, proposer = _Results(x), task.solver.begin()
    rows = torch.arange(len(x), device=x.device)
    scale = norm_per_sample(target)
    plain = torch.ones_like(rows, dtype=torch.bool)  # the start is held against nothing
    best = last = None
    budget = task.solver.max_steps - (int(steps.max()) if len(x) else 0)
    for step in range(1, budget + 1):
        if len(rows) == 0:
            break
        image, magnitude = g(x, rows)
        point = _Point.of(target, scale, x, image, magnitude)
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
                value = torch.where(_wide(trusted, x), x, value)
            ended, keep = _where(done), _where(~done)
            results.settle(rows[ended], value[ended], bound[ended], floor[ended])
            rows, target, scale, x, plain = (t[keep] for t in (rows, target, scale, x, plain))
            best = best.at(keep)
            last = best if all_kept else last.at(keep)
            proposer.keep(keep)
    if len(rows):
        raise task.out_of_steps(len(rows), len(y), None if last is None else last.size)
    return Solution(results.value, steps, results.error, results.floor)


def _refine(
    task: "_Task", narrow: RefinableMap, wide: RoundedMap, y: Tensor, x: Tensor, steps: Tensor
) -> Solution:
    """Certifies x in the wide type, with corrections from the narrow one where due."""
    target, x = y.to(wide.dtype), x.to(wide.dtype)
    results = _Results(x)
    rows = torch.arange(len(x), device=x.device)
    scale = norm_per_sample(target)
    last: _Point | None = None
    left: list[tuple[Tensor, Tensor]] = []  # rows that no correction helps, and their best points
    step = 0
    while len(rows):
        step += 1
        image, magnitude = wide(x, rows)
        point = _Point.of(target, scale, x, image, magnitude)
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
            ended = _where(done)
            value = point.x[ended] + point.residual[ended]
            results.settle(rows[ended], value, bound[ended], floor[ended])
        keep = ~done
        if some_poor and last is not None:
            dropped = _where(poor & keep)
            left.append((rows[dropped], last.x[dropped] + last.residual[dropped]))
            keep = keep & ~poor
        if some_done or some_poor:
            kept = _where(keep)
            rows, target, scale, newton = rows[kept], target[kept], scale[kept], newton[kept]
            point = point.at(kept)
        x = point.x + point.residual
        if some_newton:
            # d of d + J d = r, in the narrow type: the next point is x + d.
            chosen = _where(newton)
            some, r = point.at(chosen), point.residual[chosen]
            jacobian = narrow.jacobian(some.x.to(narrow.dtype), rows[chosen])
            product = JacobianProduct(jacobian, "jvp", len(r), narrow.dtype)
            used = torch.ones_like(rows[chosen])  # the linearization costs as an evaluation does
            correction = _iterate(task, product, r, r, used, certify=False)
            steps[rows[chosen]] += used
            x[chosen] = some.x + correction.value.to(wide.dtype)
        last = point
    if left:
        rows = torch.cat([some for some, _ in left])
        start = torch.cat([x for _, x in left])
        part = _iterate(task, _Some(wide, rows), y[rows], start, steps[rows], certify=True)
        results.settle(rows, part.value, part.error, part.floor)
        steps[rows] = part.steps
    return Solution(results.value, steps, results.error, results.floor)


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


@final
@dataclass(frozen=True)
class _Task:
    """What is to be solved; attributes as the arguments of `solve`."""

    lipschitz: float
    tol: float
    solver: Solver
    context: str

    def bounds(self, size: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
        """The bound of the error of x + r for a residual of a size, and its floor."""
        slack = 1 - self.lipschitz
        floor = rounding / slack
        return self.lipschitz * size / slack + floor, floor

    def excess_of_images(
        self, move: Tensor, change: Tensor, point: "_Point", last: "_Point"
    ) -> Tensor:
        """By how much images lie further apart than allowed, ``(N,)``, beyond all rounding."""
        # The image moved by what the point and the residual did not.
        moved = norm_per_sample(move + change)
        return moved - self.lipschitz * norm_per_sample(move) - point.rounding - last.rounding

    def check(self, step: int, point: "_Point", excess: Tensor, *flags: Tensor) -> list[bool]:
        """Flags on the host, unless an evaluation has shown what ends the solve.

        Raises:
            InversionError: a residual is not finite, or images lie too far apart.
        """
        own = [torch.isfinite(point.size).all(), (excess > 0).any()]
        finite, violated, *rest = torch.stack([*own, *flags]).tolist()
        if not finite:
            raise InversionError(_not_finite("the residual", self.context, step))
        if violated:
            raise InversionError(
                f"{self.context} is no contraction: two points have images that lie "
                f"{float(excess.max()):.3g} further apart than a Lipschitz bound of "
                f"{self.lipschitz:.6f} allows. The bound is not that of the weights that act"
            )
        return rest

    def next(
        self, proposal: Tensor | None, last: "_Point", best: "_Point", kept: Tensor
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
        usable = kept & (norm_per_sample(proposal) <= last.size / (1 - self.lipschitz))
        return torch.where(_wide(usable, step), last.x + proposal, step), ~usable

    def out_of_steps(self, missed: int, count: int, size: Tensor | None) -> InversionError:
        known = size is not None and bool(torch.isfinite(size).all())
        largest = f"largest residual {float(size.max()):.3g}, " if known else ""
        name = type(self.solver).__name__
        return InversionError(
            f"{missed} of {count} samples missed the tolerance {self.tol:.3g} after "
            f"{self.solver.max_steps} steps ({self.context}): {largest}certified Lipschitz bound "
            f"{self.lipschitz:.6f}. Allow more steps (Accuracy(solver={name}(max_steps=...))) or "
            "a larger tolerance"
        )


@final
class _Results:
    """What is known of the samples that are done."""

    def __init__(self, like: Tensor) -> None:
        self.value = like.clone()
        self.error, self.floor = (like.new_full((len(like),), torch.inf) for _ in "ab")

    def settle(self, rows: Tensor, value: Tensor, bound: Tensor, floor: Tensor) -> None:
        self.value[rows] = value
        self.error[rows] = bound
        self.floor[rows] = floor


@final
@dataclass(frozen=True)
class _Point:
    """Where samples were evaluated: x, r, its size, and the bound of the rounding of r."""

    x: Tensor
    residual: Tensor
    size: Tensor
    rounding: Tensor

    @staticmethod
    def of(target: Tensor, scale: Tensor, x: Tensor, image: Tensor, magnitude: Tensor) -> "_Point":
        """From g(x) and the bound of its rounding in units of eps; scale is the target's norm."""
        residual = (target - image).sub_(x)
        # Two roundings when the residual is formed, two when the next iterate is, and those
        # of the norms: all below 2 eps (|x| + |y|) and eps |g|, which g's own bound doubles.
        eps = torch.finfo(x.dtype).eps
        rounding = (2 * eps) * (norm_per_sample(x) + scale + magnitude)
        return _Point(x, residual, norm_per_sample(residual), rounding)

    def at(self, rows: Tensor) -> "_Point":
        return _Point(self.x[rows], self.residual[rows], self.size[rows], self.rounding[rows])

    def where(self, mask: Tensor, other: "_Point") -> "_Point":
        """This point where the mask holds, the other elsewhere."""
        wide = _wide(mask, self.x)
        return _Point(
            torch.where(wide, self.x, other.x),
            torch.where(wide, self.residual, other.residual),
            torch.where(mask, self.size, other.size),
            torch.where(mask, self.rounding, other.rounding),
        )


def _noise(target: Tensor, x: Tensor) -> Tensor:
    """The size of a residual that is nothing but rounding, as a rule, ``(N,)``."""
    eps = torch.finfo(x.dtype).eps
    return eps * (NOISE * norm_per_sample(target - x) + norm_per_sample(x))


def _where(mask: Tensor) -> Tensor:
    """The positions at which a mask holds: with the mask, the host would wait at each use."""
    return mask.nonzero()[:, 0]


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def _not_finite(what: str, context: str, step: int) -> str:
    return (
        f"{what} is not finite at step {step} ({context}): the input or the weights hold NaN or "
        "infinity"
    )
