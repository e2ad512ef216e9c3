r"""What kind of set a layer maps to one output (thesis, theorem 3.3; the papers' theorem 4).

With :math:`O` an orthonormal basis of the null space of the active rows and :math:`x_0` a solution
of the equations, the preimage is :math:`\{x_0 + O u : \bar G u \le \bar h\}` with
:math:`\bar G = G O` and :math:`\bar h = h - G x_0`. It is

- a singleton if there is no u, or if some rows of (G, h) are omnidirectional for a point,
- bounded if and only if :math:`\bar G` is omnidirectional, and else holds a ray.

Rows that hold with equality in the whole preimage are found by linear programs: the radius of the
largest ball within is maximised, and where that is zero, its multipliers are positive weights
:math:`\lambda` with :math:`\bar G^\top \lambda = 0` and :math:`\bar h^\top \lambda = 0`, so that
those rows are equations too. That repeats in the smaller space until a ball is found. If the
space shrinks to a point, the rows together are the omnidirectional ones of theorem 3.3 ii.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import final

import numpy as np
import torch
from torch import Tensor

from iresflow.errors import NoPreimageError
from iresflow.relu.networks.affine import as_array
from iresflow.relu.networks.network import Layer
from iresflow.relu.preimages.constraints import (
    ANYTHING,
    Between,
    Constraints,
    preimage_constraints,
)
from iresflow.relu.preimages.omnidirectional import Omnidirectionality, is_omnidirectional
from iresflow.relu.programs import Program, feasible, solve
from iresflow.relu.ranks import (
    CLEAR,
    ZERO,
    decompose,
    row_lengths,
    shortest_solution,
    singular_values,
)

__all__ = ["Kind", "Preimage", "classify_preimage"]

FLAT = 1e-8
"""Radius of a ball up to which it is none, in units of the problem; the solver works to 1e-10."""

THICK = 1e-6
"""Radius, in units of the problem, from which on a ball is one; in between it is uncertain."""

WEIGHT = 1e-6
"""Share of the largest multiplier from which on a row is one that limits the ball."""

CONTRADICTION = 1e-6
"""Distance of a point from a row, in units of the problem, from which on it is no solution."""


class Kind(StrEnum):
    """What a preimage is."""

    EMPTY = "empty"
    SINGLETON = "singleton"
    BOUNDED = "bounded"
    UNBOUNDED = "unbounded"
    UNCERTAIN = "uncertain"


@final
@dataclass(frozen=True, eq=False)
class Preimage:
    """A preimage, and why it is of its kind.

    Attributes:
        kind: Empty, singleton, bounded, unbounded, or uncertain where rounding would decide.
        reason: In words.
        dimension: Of the preimage; None where it is empty or uncertain.
        point: A point of it, ``(n,)``; None where it is empty or none was found.
        basis: Orthonormal directions of its affine hull, ``(n, dimension)``.
        radius: Of a ball round the point, within the affine hull, that the preimage holds; not
            the largest one.
        pinned: Numbers of the inequalities that hold with equality in all of the preimage. The
            inequalities are the rows with y = 0 in their order, then the lower limits of x, then
            the upper ones, without the infinite ones.
        omnidirectional: Of the matrix that decided: the reduced rows for bounded and unbounded,
            the pinned rows for a singleton that they pin; else None.
        ray: For an unbounded one: x + t ray, ``(n,)``, lies in it for each of its points x and
            t >= 0; norm 1.
        constraints: What was solved; None if y alone showed that there is no preimage.
    """

    kind: Kind
    reason: str
    dimension: int | None = None
    point: Tensor | None = None
    basis: Tensor | None = None
    radius: float = 0.0
    pinned: tuple[int, ...] = ()
    omnidirectional: Omnidirectionality | None = None
    ray: Tensor | None = None
    constraints: Constraints | None = None


def classify_preimage(
    layer: Layer,
    y: np.ndarray | Tensor,
    *,
    prior: Between = ANYTHING,
    member: np.ndarray | Tensor | None = None,
) -> Preimage:
    """The kind of the preimage of an output of a layer.

    Arguments:
        layer: x -> s(A x + b).
        y: The output, shape ``(m,)``; an entry of a ReLU layer is active if it is above 0.
        prior: What is known of x, such as `NON_NEGATIVE` or `BOX`.
        member: A point of the preimage, ``(n,)``, where one is known: it spares a program.

    Raises:
        ValueError: shapes that don't fit, values that are not finite, a member that is none.
        LinearProgramError: the solver gave up.
    """
    try:
        constraints = preimage_constraints(layer, y, prior)
    except NoPreimageError as error:
        return Preimage(Kind.EMPTY, str(error))
    blank = Preimage(Kind.UNCERTAIN, "", constraints=constraints)
    known = None if member is None else _member(constraints, member)
    matrix, side = constraints.equal
    if matrix.shape[0] >= constraints.size > 0:
        # A cheap proof where there is one, without the null space, which is most of the work.
        if singular_values(matrix).spans(constraints.size) == "yes":
            point = shortest_solution(matrix, side)[0] if known is None else known
            return _consistent(blank, point, np.zeros((constraints.size, 0)))
    parts = decompose(matrix)
    if not parts.certain:
        return replace(blank, reason="the rank of the active rows is within the tolerance")
    start, basis = parts.solve(side), parts.null_basis
    if known is not None:
        start = start + basis @ (basis.T @ (known - start))
    return _consistent(blank, start, basis)


def _member(constraints: Constraints, member: np.ndarray | Tensor) -> np.ndarray:
    point = as_array(member, "member", 1)
    if len(point) != constraints.size:
        raise ValueError(f"member has shape {point.shape}; allowed is ({constraints.size},)")
    wrong = constraints.violation(point)
    if not wrong <= CONTRADICTION * _scale(constraints, point):
        raise ValueError(f"member is not in the preimage: it is {wrong:.2g} away from a row")
    return point


def _scale(constraints: Constraints, x: np.ndarray) -> float:
    """What lengths are compared with: the unit of the problem, or |x| where that is more."""
    return max(constraints.unit, float(np.linalg.norm(x)))


def _consistent(blank: Preimage, start: np.ndarray, basis: np.ndarray) -> Preimage:
    """Classifies {start + basis u}, where that solves the equations."""
    assert blank.constraints is not None
    matrix, side = blank.constraints.equal
    misfit = float((abs(matrix @ start - side) / row_lengths(matrix)).max(initial=0.0))
    if misfit > CONTRADICTION * _scale(blank.constraints, start):
        reason = f"no preimage: the active rows contradict by {misfit:.2g}"
        return replace(blank, kind=Kind.EMPTY, reason=reason)
    return _within(blank, start, basis)


@final
@dataclass(frozen=True, eq=False)
class _Ball:
    """The largest ball in {u : rows u <= side}; the weights show why it is not larger."""

    radius: float
    center: np.ndarray
    weights: np.ndarray


def _within(blank: Preimage, start: np.ndarray, basis: np.ndarray) -> Preimage:
    """Classifies {start + basis u} under the inequalities."""
    assert blank.constraints is not None
    rows, side = blank.constraints.inequalities
    sizes = row_lengths(rows)
    pinned: list[int] = []
    full = basis
    while True:
        reduced, slack = rows @ basis, side - rows @ start
        norms = np.linalg.norm(reduced, axis=1)
        flat = norms <= ZERO * sizes  # rows that don't see u: they hold, or nothing does
        if ((norms < CLEAR * sizes) & ~flat).any():
            return replace(blank, reason="whether a row sees the null space is uncertain")
        scale = _scale(blank.constraints, start)
        missing = -slack[flat] / sizes[flat]
        if missing.max(initial=0.0) > THICK * scale:
            above = f"an inequality is violated by {missing.max():.2g} at the only place left"
            return replace(blank, kind=Kind.EMPTY, reason=f"no preimage: {above}")
        if basis.shape[1] == 0:
            return _point(blank, start, rows @ full, tuple(pinned))
        free = np.flatnonzero(~flat)
        ball = _largest_ball(reduced[free], slack[free], norms[free], scale)
        if ball.radius < -THICK * scale:
            reason = "no preimage: the inequalities contradict"
            return replace(blank, kind=Kind.EMPTY, reason=reason)
        if ball.radius > THICK * scale:
            found = replace(
                blank,
                point=torch.from_numpy(start + basis @ ball.center),
                dimension=basis.shape[1],
                basis=torch.from_numpy(basis),
                radius=ball.radius,
                pinned=tuple(pinned),
            )
            return _extent(found, reduced[free])
        tight = free[ball.weights > WEIGHT * ball.weights.max(initial=0.0)]
        parts = decompose(reduced[tight])
        if abs(ball.radius) > FLAT * scale or not parts.certain or parts.rank == 0:
            reason = f"the largest ball has radius {ball.radius:.2g}: within the tolerance"
            return replace(blank, reason=reason)
        pinned += tight.tolist()
        start = start + basis @ parts.solve(slack[tight])
        basis = basis @ parts.null_basis


def _largest_ball(rows: np.ndarray, side: np.ndarray, norms: np.ndarray, limit: float) -> _Ball:
    """Of radius at most ``limit``, and negative where the inequalities contradict."""
    count, size = rows.shape
    distances = side / norms
    origin = float(distances.min(initial=limit))
    if origin > THICK * limit:
        return _Ball(origin, np.zeros(size), np.zeros(count))  # a ball: no need of the largest
    # In units of the limit, as the solver's tolerance is a number.
    program = Program(
        np.append(np.zeros(size), -1.0),
        np.column_stack([rows / norms[:, None], np.ones(count)]),
        np.full(count, -np.inf),
        distances / limit,
        upper=np.append(np.full(size, np.inf), 1.0),
    )
    solved = feasible(solve(program, tolerance=1e-10))  # t may fall without limit
    assert solved.x is not None and solved.multipliers is not None
    return _Ball(limit * float(solved.x[-1]), limit * solved.x[:-1], -solved.multipliers)


def _point(
    blank: Preimage, point: np.ndarray, reduced: np.ndarray, pinned: tuple[int, ...]
) -> Preimage:
    """A singleton, and why."""
    single = replace(
        blank,
        kind=Kind.SINGLETON,
        dimension=0,
        point=torch.from_numpy(point),
        basis=torch.zeros(len(point), 0, dtype=torch.float64),
        pinned=pinned,
        reason="as many independent active rows as dimensions",
    )
    if not pinned:
        return single
    decided = is_omnidirectional(reduced[list(pinned)])
    if not decided:
        return replace(blank, reason="the rows that pin the point are nearly dependent")
    reason = f"{len(pinned)} inequalities are omnidirectional for one point"
    return replace(single, reason=reason, omnidirectional=decided)


def _extent(found: Preimage, reduced: np.ndarray) -> Preimage:
    """Whether a preimage with a ball inside its affine hull is bounded."""
    assert found.basis is not None
    decided = is_omnidirectional(reduced)
    found = replace(found, omnidirectional=decided)
    if decided.holds is None:
        return replace(found, reason="a half-space is nearly free of rows")
    if decided.holds:
        reason = "the inactive rows are omnidirectional in the null space of the active ones"
        return replace(found, kind=Kind.BOUNDED, reason=reason)
    assert decided.direction is not None and found.basis is not None
    return replace(
        found,
        kind=Kind.UNBOUNDED,
        ray=found.basis @ decided.direction,
        reason="a direction in the null space of the active rows raises no inactive one",
    )
