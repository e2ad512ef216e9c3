"""What the driver knows of a solve: its task, the points it has evaluated, and what is done."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.errors import InversionError
from iresflow.solvers.base import Arithmetic, Solver
from iresflow.tensors import norm_per_sample

__all__ = ["Point", "Results", "Task", "evaluate", "excess_of_images", "not_finite", "spread"]


@final
@dataclass(frozen=True)
class Task:
    """What is to be solved; attributes as the arguments of `iresflow.solvers.driver.solve`."""

    lipschitz: float
    tol: float
    solver: Solver
    context: str

    def bounds(self, size: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
        """The bound of the error of x + r for a residual of a size, and its floor."""
        slack = 1 - self.lipschitz
        floor = rounding / slack
        return self.lipschitz * size / slack + floor, floor

    def check(self, finite: bool, excess: Tensor, violated: bool, step: int) -> None:
        """Raises what an evaluation has shown.

        Arguments:
            finite: Whether all residuals are.
            excess: What images lie further apart than the bound allows, ``(N,)``.
            violated: Whether any does.
            step: The number of the evaluation.
        """
        if not finite:
            raise InversionError(not_finite("the residual", self.context, step))
        if violated:
            raise InversionError(
                f"{self.context} is no contraction: two points have images that lie "
                f"{float(excess.max()):.3g} further apart than a Lipschitz bound of "
                f"{self.lipschitz:.6f} allows. The bound is not that of the weights that act"
            )

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
class Results:
    """What is known of the samples that are done."""

    def __init__(self, like: Tensor) -> None:
        self.value = like.clone()
        self.error, self.floor = (like.new_full((len(like),), torch.inf) for _ in "ab")

    def settle(self, rows: Tensor, value: Tensor, bound: Tensor, floor: Tensor) -> None:
        self.value[rows] = value
        self.error[rows] = bound
        self.floor[rows] = floor


@final
@dataclass
class Point:
    """Where samples were evaluated: x, r, its size, and the bound of the rounding of r."""

    x: Tensor
    residual: Tensor
    size: Tensor
    rounding: Tensor

    def at(self, rows: Tensor) -> "Point":
        return Point(self.x[rows], self.residual[rows], self.size[rows], self.rounding[rows])

    def where(self, mask: Tensor, other: "Point") -> "Point":
        """This point where the mask holds, the other elsewhere."""
        wide = spread(mask, self.x)
        return Point(
            torch.where(wide, self.x, other.x),
            torch.where(wide, self.residual, other.residual),
            torch.where(mask, self.size, other.size),
            torch.where(mask, self.rounding, other.rounding),
        )


def evaluate(
    arithmetic: Arithmetic, target: Tensor, scale: Tensor, x: Tensor, rows: Tensor
) -> Point:
    """The point x, for the samples with indices ``rows``; scale is the size of the target."""
    image, magnitude = arithmetic.g(x, rows)
    residual = (target - image).sub_(x)
    # Two roundings when the residual is formed, two when the next iterate is, and those
    # of the norms: all below 2 eps (|x| + |y|) and eps |g|, which g's own bound doubles.
    eps = torch.finfo(arithmetic.dtype).eps
    rounding = (2 * eps) * (norm_per_sample(x) + scale + magnitude)
    return Point(x, residual, norm_per_sample(residual), rounding)


def excess_of_images(
    task: Task, move: Tensor, change: Tensor, point: Point, last: Point
) -> Tensor:
    """By how much two images lie further apart than allowed, ``(N,)``, beyond all rounding."""
    # The image moved by what the point and the residual did not.
    moved = norm_per_sample(move + change)
    return moved - task.lipschitz * norm_per_sample(move) - point.rounding - last.rounding


def spread(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def not_finite(what: str, context: str, step: int) -> str:
    return (
        f"{what} is not finite at step {step} ({context}): the input or the weights hold NaN or "
        "infinity"
    )
