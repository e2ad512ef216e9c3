"""Walks through a preimage: its extent, points of it, and how far it goes in a direction.

All of it happens in the coordinates u of the affine hull, x = point + basis u, where the equations
hold by themselves and programs have few unknowns.
"""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from iresflow.errors import NoPreimageError
from iresflow.relu.networks.affine import as_array
from iresflow.relu.preimages.classification import Kind, Preimage
from iresflow.relu.programs import Program, feasible, solve_program
from iresflow.relu.warm import solve_costs

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
    point: np.ndarray | None


def farthest_in_preimage(preimage: Preimage, direction: np.ndarray | torch.Tensor) -> Farthest:
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


def preimage_box(preimage: Preimage) -> tuple[np.ndarray, np.ndarray]:
    """The range of each coordinate over a preimage: the lowest values and the highest, ``(n,)``.

    Two linear programs for each coordinate that is not constant.

    Raises:
        NoPreimageError: the preimage is empty, or uncertain without a point.
        LinearProgramError: the solver gave up.
    """
    hull = _Hull.of(preimage)
    low, high = hull.point.copy(), hull.point.copy()
    moving = np.flatnonzero(np.linalg.norm(hull.basis, axis=1) > PARALLEL)
    for limit, sign in ((low, 1), (high, -1)):
        # Neighbours have similar rows, so that one corner is near to the next.
        solutions = solve_costs(hull.program(), sign * hull.basis[moving])
        for i, solved in zip(moving, solutions, strict=True):
            limit[i] += sign * feasible(solved).value
    return low, high


def sample_preimage(
    preimage: Preimage,
    count: int,
    *,
    steps: int = 200,
    reach: float | None = None,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Random points of a preimage, by hit-and-run (Smith, 1984).

    Each is the end of a chain of its own from the preimage's point, so that they are independent;
    with growing ``steps`` their distribution tends to the uniform one. In flat polytopes of many
    dimensions that is slow, and the points stay nearer to the start.

    Arguments:
        preimage: Where to sample.
        count: Number of points N.
        steps: Steps of each chain.
        reach: Largest distance from the preimage's point; needed for unbounded ones.
        generator: Of the randomness.

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
    generator = generator or np.random.default_rng(0)
    u = np.zeros((count, hull.basis.shape[1]))
    slack = np.broadcast_to(hull.side, (count, len(hull.side))).copy()
    for _ in range(steps if hull.basis.shape[1] else 0):
        way = generator.standard_normal(u.shape)
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        speed = way @ hull.rows.T
        with np.errstate(divide="ignore", invalid="ignore"):
            time = slack / speed
        ahead = np.where(speed > PARALLEL, time, np.inf).min(1, initial=np.inf)
        behind = np.where(speed < -PARALLEL, time, -np.inf).max(1, initial=-np.inf)
        if reach is not None:
            middle = -(u * way).sum(1)
            half = np.sqrt(np.maximum(middle**2 + reach**2 - (u * u).sum(1), 0))
            ahead, behind = np.minimum(ahead, middle + half), np.maximum(behind, middle - half)
        step = (behind + (ahead - behind) * generator.random(count))[:, None]
        u += step * way
        slack = np.maximum(slack - step * speed, 0)
    return hull.point + u @ hull.basis.T


@final
@dataclass(frozen=True, eq=False)
class _Hull:
    """A preimage as {point + basis u : rows u <= side}; no row of zeros, no negative side."""

    point: np.ndarray
    basis: np.ndarray
    rows: np.ndarray
    side: np.ndarray

    @classmethod
    def of(cls, preimage: Preimage) -> "_Hull":
        if preimage.point is None or preimage.basis is None or preimage.system is None:
            raise NoPreimageError(f"the preimage is {preimage.kind}: {preimage.reason}")
        matrix, side = preimage.system.inequalities()
        rows, slack = matrix @ preimage.basis, side - matrix @ preimage.point
        norms = np.linalg.norm(rows, axis=1)
        seeing = norms > PARALLEL * np.linalg.norm(matrix, axis=1)
        seeing[list(preimage.pinned)] = False
        rows, norms = rows[seeing], norms[seeing]
        side = np.maximum(slack[seeing] / norms, 0)
        return cls(preimage.point, preimage.basis, rows / norms[:, None], side)

    def program(self) -> Program:
        """The constraints on u."""
        below = (self.rows, self.side) if len(self.rows) else None
        return Program(np.zeros(self.basis.shape[1]), below=below)

    def farthest(self, direction: np.ndarray) -> Farthest:
        cost = -(self.basis.T @ direction)
        if np.linalg.norm(cost) <= PARALLEL * np.linalg.norm(direction):
            return Farthest(float(self.point @ direction), self.point)
        solved = feasible(solve_program(replace(self.program(), cost=cost)))
        if solved.x is None:
            return Farthest(np.inf, None)
        point = self.point + self.basis @ solved.x
        return Farthest(float(point @ direction), point)
