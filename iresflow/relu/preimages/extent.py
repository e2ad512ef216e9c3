"""How far a preimage reaches: in a direction, in each coordinate, and by points of it.

All of it happens in the coordinates u of the affine hull, x = point + basis u, where the equations
hold by themselves and programs have few unknowns.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from iresflow.errors import NoPreimageError
from iresflow.relu.networks.affine import as_array
from iresflow.relu.preimages.classification import Kind, Preimage
from iresflow.relu.programs import Program, feasible, solve, solve_costs
from iresflow.relu.ranks import ZERO, row_lengths

__all__ = [
    "Farthest",
    "farthest_in_preimage",
    "preimage_box",
    "sample_preimage",
]

PARALLEL = 1e-12
"""Speed towards a wall below which a line never reaches it."""


@final
@dataclass(frozen=True, eq=False)
class Farthest:
    """How far a preimage goes in a direction.

    Attributes:
        value: The largest inner product of a point with the direction; infinite if unbounded.
        point: Where it is, ``(n,)``; None if unbounded.
    """

    value: float
    point: Tensor | None


def farthest_in_preimage(preimage: Preimage, direction: np.ndarray | Tensor) -> Farthest:
    """The point of a preimage that lies farthest in a direction ``(n,)``.

    Raises:
        ValueError: a direction of another shape, or not finite.
        NoPreimageError: the preimage is empty, or uncertain without a point.
        LinearProgramError: the solver gave up.
    """
    hull = _Hull.of(preimage)
    d = as_array(direction, "direction", 1)
    if len(d) != len(hull.point):
        raise ValueError(f"direction has shape {d.shape}; allowed is ({len(hull.point)},)")
    return hull.farthest(d)


def preimage_box(preimage: Preimage) -> tuple[Tensor, Tensor]:
    """The range of each coordinate over a preimage: the lowest values and the highest, ``(n,)``.

    Two linear programs for each coordinate that is not constant.

    Raises:
        NoPreimageError: the preimage is empty, or uncertain without a point.
        LinearProgramError: the solver gave up.
    """
    hull = _Hull.of(preimage)
    low, high = hull.point.copy(), hull.point.copy()
    moving = np.flatnonzero(np.linalg.norm(hull.basis, axis=1) > ZERO)
    for limit, sign in ((low, 1), (high, -1)):
        # Neighbours have similar rows, so that one corner is near to the next.
        solutions = solve_costs(hull.program(), sign * hull.basis[moving])
        for i, solved in zip(moving, solutions, strict=True):
            limit[i] += sign * hull.unit * feasible(solved).value
    return torch.from_numpy(low), torch.from_numpy(high)


def sample_preimage(
    preimage: Preimage,
    count: int,
    *,
    steps: int = 200,
    reach: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random points of a preimage, by hit-and-run (Smith, 1984).

    Each is the end of a chain of its own from the preimage's point, so that they are independent;
    with growing ``steps`` their distribution tends to the uniform one. In flat polytopes of many
    dimensions that is slow, and the points stay nearer to the start.

    Arguments:
        preimage: Where to sample.
        count: Number of points N.
        steps: Steps of each chain.
        reach: Largest distance from the preimage's point; needed for unbounded ones.
        generator: Of the randomness; by default one with the seed 0.

    Returns:
        ``(N, n)``.

    Raises:
        ValueError: counts below 1, or an unbounded preimage without a reach.
        NoPreimageError: the preimage is empty, or uncertain without a point.
    """
    hull = _Hull.of(preimage)
    if count < 1 or steps < 1 or (reach is not None and not reach > 0):
        raise ValueError(f"count={count}, steps={steps}, reach={reach}; all must be above 0")
    if reach is None and preimage.kind not in (Kind.BOUNDED, Kind.SINGLETON):
        raise ValueError(f"an {preimage.kind} preimage has no uniform distribution: give a reach")
    generator = generator or torch.Generator().manual_seed(0)
    basis, rows, side = (torch.from_numpy(part) for part in (hull.basis, hull.rows, hull.side))
    u = basis.new_zeros(count, basis.shape[1])
    slack = (hull.unit * side).repeat(count, 1)
    infinite = slack.new_full((1,), torch.inf)
    for _ in range(steps if basis.shape[1] else 0):
        way = torch.randn(u.shape, generator=generator, dtype=u.dtype)
        way /= way.norm(dim=1, keepdim=True)
        speed = way @ rows.mT
        time = slack / speed
        ahead = torch.where(speed > PARALLEL, time, torch.inf)
        ahead = torch.cat([ahead, infinite.expand(count, 1)], 1).amin(1)
        before = torch.where(speed < -PARALLEL, time, -torch.inf)
        before = torch.cat([before, -infinite.expand(count, 1)], 1).amax(1)
        if reach is not None:
            middle = -(u * way).sum(1)
            half = (middle**2 + reach**2 - (u * u).sum(1)).clamp(min=0).sqrt()
            ahead = torch.minimum(ahead, middle + half)
            before = torch.maximum(before, middle - half)
        share = torch.rand(count, generator=generator, dtype=u.dtype)
        step = (before + (ahead - before) * share)[:, None]
        u += step * way
        slack = (slack - step * speed).clamp(min=0)
    return torch.from_numpy(hull.point) + u @ basis.mT


@final
@dataclass(frozen=True, eq=False)
class _Hull:
    """A preimage as {point + unit basis u : rows u <= side}.

    Rows have norm 1, and no side is negative. The unit is that of the problem, since the solver's
    tolerance is a number.
    """

    point: np.ndarray
    basis: np.ndarray
    rows: np.ndarray
    side: np.ndarray
    unit: float

    @classmethod
    def of(cls, preimage: Preimage) -> "_Hull":
        if preimage.point is None or preimage.basis is None or preimage.constraints is None:
            raise NoPreimageError(f"the preimage is {preimage.kind}: {preimage.reason}")
        point, basis = preimage.point.numpy(), preimage.basis.numpy()
        matrix, side = preimage.constraints.inequalities
        rows, slack = matrix @ basis, side - matrix @ point
        norms = np.linalg.norm(rows, axis=1)
        seeing = norms > ZERO * row_lengths(matrix)
        seeing[list(preimage.pinned)] = False
        rows, norms, unit = rows[seeing], norms[seeing], preimage.constraints.unit
        side = np.maximum(slack[seeing] / norms, 0) / unit
        return cls(point, basis, rows / norms[:, None], side, unit)

    def program(self) -> Program:
        """The constraints on u."""
        none = np.full(len(self.rows), -np.inf)
        return Program(np.zeros(self.basis.shape[1]), self.rows, none, self.side)

    def farthest(self, direction: np.ndarray) -> Farthest:
        length = float(np.linalg.norm(direction))
        cost = -(self.basis.T @ direction)
        x = self.point
        if np.linalg.norm(cost) > ZERO * length:
            solved = feasible(solve(replace(self.program(), cost=cost / length)))
            if solved.x is None:
                return Farthest(np.inf, None)
            x = x + self.unit * (self.basis @ solved.x)
        return Farthest(float(x @ direction), torch.from_numpy(x))
