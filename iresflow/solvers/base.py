r"""The driver that inverts :math:`y = x + g(x)` for a contraction g, sample by sample.

The driver owns the loop, the tolerance, the error bounds, the check for finite values, and which
samples still run; a `Solver` only proposes the next iterate. All norms are Euclidean, for each
sample over all of its entries.

With a certified :math:`L \ge \operatorname{Lip}(g)`, :math:`L < 1`, and the residual
:math:`r = y - g(x) - x`, the solution :math:`x^*` obeys :math:`|x - x^*| \le |r| / (1 - L)`, and
the next fixed-point iterate :math:`x + r` obeys :math:`|x + r - x^*| \le L |r| / (1 - L)` (both
from the proof of Lemma 4.5 of the thesis). The rounding of r itself, for which the map gives a
bound, is added to r, so the error is certified as it was computed.

In float32 such a bound is far above the error. So a map may come in two types of float. The driver
iterates in the narrow one until its digits are used up, then refines as one refines the solution
of a linear system (Higham, *Accuracy and Stability of Numerical Algorithms*, chapter 12): the wide
type forms the residual and certifies, and the correction d of :math:`d + J d = r` is solved in the
narrow one, whose rounding is relative to d. That is Newton's method, so one correction mostly
suffices, and the wide type, which is several times dearer, is used twice.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.errors import InversionError, NotContractiveError
from iresflow.linearization import Products
from iresflow.tensors import full_precision, norm_per_sample

__all__ = ["Arithmetic", "Map", "Solution", "Solver", "product_map", "solve"]

Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""g for some samples of a batch: points ``(N, *event)`` and sample indices ``(N,)`` to values
``(N, *event)`` and, ``(N,)``, bounds of the norm of their rounding error in units of eps."""

STAGNATION = 0.9
"""A residual that keeps more than this share of itself in a step no longer shrinks."""

PRODUCT_ROUNDING = 100.0
"""Rounding of a product with J, in units of eps times the sizes of its operand and result. It only
tells when the residual of a linear equation may be noise; nothing is certified with it."""


@final
@dataclass(frozen=True)
class Arithmetic:
    """A map in one floating-point type.

    Attributes:
        g: The map, for points of that type.
        dtype: The type.
        linearize: The products with g's Jacobians at points ``(N, *event)`` of that type, of
            samples with indices ``(N,)``; None where g is not refined by them.
    """

    g: Map
    dtype: torch.dtype
    linearize: Callable[[Tensor, Tensor], Products] | None = None


def product_map(
    product: Callable[[Products, Tensor], Tensor], products: Products, count: int
) -> Map:
    """A product with the Jacobians at a batch of points, as a map of vectors.

    Arguments:
        product: Takes products and directions ``(1, N, *event)``: a vjp or a jvp.
        products: At the batch's points.
        count: The size of that batch.
    """

    def apply(v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        some = products if len(index) == count else products.narrow(index)
        image = product(some, v[None])[0]
        return image, PRODUCT_ROUNDING * (norm_per_sample(v) + norm_per_sample(image))

    return apply


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
        value: x, ``(B, *event)``, in the type of the last arithmetic.
        steps: Evaluations of g and products with its Jacobian for each sample, ``(B,)`` integers.
        error: Certified upper bound of the distance to the exact solution, ``(B,)``, rounding
            included. It exceeds the tolerance only where rounding allows no better, and then is at
            most twice `floor`.
        floor: What rounding alone adds to that bound, ``(B,)``: no tolerance below it can be
            certified in that type.
    """

    value: Tensor
    steps: Tensor
    error: Tensor
    floor: Tensor


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
        raise InversionError(_not_finite("what is to be inverted", context, 0))
    *narrow, wide = arithmetics
    x = y
    steps = torch.zeros(len(y), dtype=torch.long, device=y.device)
    if narrow:
        first = _Pass(lipschitz, tol, solver, context)
        x = first(narrow[0], y, y, steps, certify=False).value
    last = _Pass(lipschitz, tol, solver, context, narrow[0] if narrow else None)
    return last(wide, y, x, steps, certify=True)


@dataclass(frozen=True)
class _Pass:
    """A solve in one arithmetic; attributes as the arguments of `solve`.

    `narrow` is the arithmetic of the corrections; without one, the solver makes the steps.
    """

    lipschitz: float
    tol: float
    solver: Solver
    context: str
    narrow: Arithmetic | None = None

    def __call__(
        self, arithmetic: Arithmetic, y: Tensor, x: Tensor, steps: Tensor, *, certify: bool
    ) -> Solution:
        """Goes on from x and adds to the steps; `certify` counts the rounding into the error."""
        target, x = y.to(arithmetic.dtype), x.to(arithmetic.dtype)
        eps = torch.finfo(arithmetic.dtype).eps
        value = x.clone()
        error, floor = (x.new_full((len(x),), torch.inf) for _ in "ab")
        active = torch.arange(len(x), device=x.device)
        state, scale = self.solver.start(x), norm_per_sample(target)
        size = previous = torch.full_like(scale, torch.inf)
        last: tuple[Tensor, Tensor, Tensor] | None = None
        budget = self.solver.max_steps - (int(steps.max()) if len(x) else 0)
        for step in range(1, budget + 1):
            if len(active) == 0:
                break
            image, magnitude = arithmetic.g(x, active)
            residual = target - image - x
            size = norm_per_sample(residual)
            steps[active] += 1
            # Two roundings when the residual is formed, two when the next iterate is, and those
            # of the norms: all below 2 eps (|x| + |y|) and eps |g|, which g's own bound doubles.
            rounding = eps * (2 * norm_per_sample(x) + 2 * scale + 2 * magnitude)
            if not bool(torch.isfinite(size).all()):
                raise InversionError(_not_finite("the residual", self.context, step))
            if last is not None:
                self._require_contraction(x - last[0], image - last[1], rounding + last[2])
            reached, bound, unavoidable = self._bounds(size, rounding, certify)
            # A true contraction shrinks the residual by L; what does not shrinks no further.
            stuck = size >= max(STAGNATION, self.lipschitz) * previous
            done = reached | (stuck & (size <= rounding)) | (size == 0)
            if bool(done.any()):
                finished = active[done]
                value[finished] = target[done] - image[done]
                error[finished], floor[finished] = bound[done], unavoidable[done]
                keep = ~done
                active, x, target, image, residual, scale, size, rounding, previous = (
                    t[keep]
                    for t in (active, x, target, image, residual, scale, size, rounding, previous)
                )
                state = tuple(s[keep] for s in state)
            last = (x, image, rounding)
            if self.narrow is None or self.narrow.linearize is None:
                x, state = self.solver.step(x, residual, state)
            elif len(active):
                correction = self._correction(self.narrow, x, residual, active, steps)
                # Newton's method may overshoot, a fixed-point step never does.
                poor = (size > self.lipschitz * previous).reshape(-1, *[1] * (x.ndim - 1))
                x = x + torch.where(poor, residual, correction)
            previous = size
        if len(active):
            raise InversionError(self._out_of_steps(len(active), len(y), size))
        return Solution(value, steps, error, floor)

    def _correction(
        self, narrow: Arithmetic, x: Tensor, residual: Tensor, index: Tensor, steps: Tensor
    ) -> Tensor:
        """d of d + J d = r, to half of the tolerance, for the samples of an index."""
        assert narrow.linearize is not None
        products = narrow.linearize(x.to(narrow.dtype), index)
        linear = Arithmetic(product_map(lambda p, v: p.jvp(v), products, len(x)), narrow.dtype)
        solve_linear = _Pass(self.lipschitz, self.tol / 2, self.solver, self.context)
        used = torch.zeros_like(index)
        solution = solve_linear(linear, residual, residual, used, certify=False)
        steps[index] += used
        return solution.value.to(x.dtype)

    def _bounds(
        self, size: Tensor, rounding: Tensor, certify: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether the tolerance is reached, the bound of the error, and its floor."""
        slack = 1 - self.lipschitz
        floor = rounding / slack
        bound = self.lipschitz * size / slack + floor
        reached = (bound if certify else bound - floor) <= self.tol
        return reached, bound, floor

    def _require_contraction(self, moved: Tensor, image: Tensor, rounding: Tensor) -> None:
        before, behind = norm_per_sample(moved), norm_per_sample(image)
        excess = behind - self.lipschitz * before - rounding
        if bool((excess > 0).any()):
            worst = int(excess.argmax())
            raise InversionError(
                f"{self.context} is no contraction: two points {float(before[worst]):.3g} apart "
                f"have images {float(behind[worst]):.3g} apart, against a Lipschitz bound of "
                f"{self.lipschitz:.6f}. The bound is not that of the weights that act"
            )

    def _out_of_steps(self, missed: int, count: int, size: Tensor) -> str:
        known = bool(torch.isfinite(size).all())
        largest = f"largest residual {float(size.max()):.3g}, " if known else ""
        return (
            f"{missed} of {count} samples missed the tolerance {self.tol:.3g} after "
            f"{self.solver.max_steps} steps ({self.context}): {largest}certified Lipschitz bound "
            f"{self.lipschitz:.6f}. Allow more steps (Accuracy(solver=FixedPoint(max_steps))) or "
            "a larger tolerance"
        )


def _not_finite(what: str, context: str, step: int) -> str:
    return (
        f"{what} is not finite at step {step} ({context}): the input or the weights hold NaN or "
        "infinity"
    )
