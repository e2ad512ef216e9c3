r"""What a residual proves: error bounds of points, and which steps may follow them.

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
most :math:`L^k` of it, and the worst case is twice that of the plain iteration.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.errors import InversionError
from iresflow.solvers.base import Solver
from iresflow.tensors import norm_per_sample, per_sample

__all__ = ["Point", "Results", "Task", "not_finite", "positions"]


@final
@dataclass(frozen=True)
class Point:
    """Where samples were evaluated: x, r, its size, and the bound of the rounding of r."""

    x: Tensor
    residual: Tensor
    size: Tensor
    rounding: Tensor

    @staticmethod
    def of(target: Tensor, scale: Tensor, x: Tensor, image: Tensor, magnitude: Tensor) -> "Point":
        """From g(x) and the bound of its rounding in units of eps; scale is the target's norm."""
        residual = (target - image).sub_(x)
        # Two roundings when the residual is formed, two when the next iterate is, and those
        # of the norms: all below 2 eps (|x| + |y|) and eps |g|, which g's own bound doubles.
        eps = torch.finfo(x.dtype).eps
        rounding = (2 * eps) * (norm_per_sample(x) + scale + magnitude)
        return Point(x, residual, norm_per_sample(residual), rounding)

    def at(self, rows: Tensor) -> "Point":
        return Point(self.x[rows], self.residual[rows], self.size[rows], self.rounding[rows])

    def where(self, mask: Tensor, other: "Point") -> "Point":
        """This point where the mask holds, the other elsewhere."""
        wide = per_sample(mask, self.x)
        return Point(
            torch.where(wide, self.x, other.x),
            torch.where(wide, self.residual, other.residual),
            torch.where(mask, self.size, other.size),
            torch.where(mask, self.rounding, other.rounding),
        )


@final
@dataclass(frozen=True)
class Task:
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

    def excess_of_images(self, move: Tensor, change: Tensor, point: Point, last: Point) -> Tensor:
        """By how much images lie further apart than allowed, ``(N,)``, beyond all rounding."""
        # The image moved by what the point and the residual did not.
        moved = norm_per_sample(move + change)
        return moved - self.lipschitz * norm_per_sample(move) - point.rounding - last.rounding

    def check(self, step: int, point: Point, excess: Tensor, *flags: Tensor) -> list[bool]:
        """Flags on the host, unless an evaluation has shown what ends the solve.

        Raises:
            InversionError: a residual is not finite, or images lie too far apart.
        """
        own = [torch.isfinite(point.size).all(), (excess > 0).any()]
        finite, violated, *rest = torch.stack([*own, *flags]).tolist()
        if not finite:
            raise InversionError(not_finite("the residual", self.context, step))
        if violated:
            raise InversionError(
                f"{self.context} is no contraction: two points have images that lie "
                f"{float(excess.max()):.3g} further apart than a Lipschitz bound of "
                f"{self.lipschitz:.6f} allows. The bound is not that of the weights that act"
            )
        return rest

    def next(
        self, proposal: Tensor | None, last: Point, best: Point, kept: Tensor
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
        return torch.where(per_sample(usable, step), last.x + proposal, step), ~usable

    def out_of_steps(self, missed: int, count: int, size: Tensor | None) -> InversionError:
        largest = ""
        if size is not None and bool(torch.isfinite(size).all()):
            largest = f"largest residual {float(size.max()):.3g}, "
        name = type(self.solver).__name__
        return InversionError(
            f"{missed} of {count} samples missed the tolerance {self.tol:.3g} after "
            f"{self.solver.max_steps} steps ({self.context}): {largest}certified Lipschitz bound "
            f"{self.lipschitz:.6f}. Allow more steps (Accuracy(solver={name}(max_steps=...))) or "
            "a larger tolerance"
        )


@final
class Results:
    """What is known of the samples that are done."""

    def __init__(self, like: Tensor) -> None:
        self.value = like.clone()
        self.error, self.floor = (like.new_full((len(like),), torch.inf) for _ in "ab")

    def settle(self, rows: Tensor, value: Tensor, bound: Tensor, floor: Tensor) -> None:
        self.value[rows] = value
        self.error[rows] = bound
        self.floor[rows] = floor


def positions(mask: Tensor) -> Tensor:
    """The positions at which a mask holds: with the mask, the host would wait at each use."""
    return mask.nonzero()[:, 0]


def not_finite(what: str, context: str, step: int) -> str:
    return (
        f"{what} is not finite at step {step} ({context}): the input or the weights hold NaN or "
        "infinity"
    )
