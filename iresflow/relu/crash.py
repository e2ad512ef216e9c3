"""Bases to start the simplex method from, near the solution.

A point where a p-norm of the misfit is small (p = 16 for the l-infinity program, 1 for the l1
program), by a few reweighted least-squares problems, tells most of the rows that are at their
limits in the solution. HiGHS goes on from there, and it alone decides what is optimal: a bad
guess costs time, nothing else.
"""

from collections.abc import Sequence

import numpy as np
from scipy import linalg

from iresflow.relu.inversion.preactivation_ranges import Ranges
from iresflow.relu.warm import Basis, basis_of

__all__ = ["infinity_basis", "one_norm_basis", "relaxed_basis"]

BASIC, LOWER, UPPER = 0, 1, 2

ORDERS = (3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""The p of the reweighted problems on the way to p = 16."""

ROUNDS = 5
"""Reweighted problems for p = 1."""

PRICES = (3.0, 10.0, 30.0, 100.0)
"""What a row beyond its limit costs on the way to the relaxed program, over one before it."""

FLOOR = 1e-4
"""Smallest misfit, as a share of the largest, that a weight is divided by for p = 1."""


def infinity_basis(
    matrix: np.ndarray, ranges: Ranges, pattern: np.ndarray, z: np.ndarray, lower: float
) -> Basis | None:
    """A basis for the rows of `InfinityNorm`: unknowns (z, delta), upper limits, lower ones.

    Arguments:
        matrix: A, ``(n, k)``.
        ranges: Of the observation.
        pattern: Rows with lower limits in the program, ``(n,)`` bool.
        z: The least-squares point, ``(k,)``.
        lower: Of each entry of z.

    Returns:
        None where there are too few rows to choose from.
    """
    z, free = _approach(matrix, ranges, z, lower, ORDERS)
    columns = matrix[:, free]
    value = matrix @ z
    above = (value - ranges.high) / ranges.high_rate
    below = ((ranges.low - value) / ranges.low_rate)[pattern]
    misfit = np.concatenate([above, below])
    count = int(free.sum()) + 1
    if len(misfit) < count:
        return None
    near = np.argsort(-misfit)[: 2 * count]
    depth = misfit[near[0]] - misfit[near]
    scale = max(depth[min(count, len(depth)) - 1], 1e-12 * abs(misfit[near[0]]), 1e-300)
    rows = np.concatenate([columns, -columns[pattern]])[near]
    rates = np.concatenate([ranges.high_rate, ranges.low_rate[pattern]])[near]
    weighted = np.column_stack([rows, -rates]) * np.exp(-3 * depth / scale)[:, None]
    chosen = near[_independent(weighted, count)]
    states = np.full(len(misfit), BASIC)
    states[chosen] = np.where(chosen < len(above), UPPER, LOWER)
    unknowns = np.append(np.where(free, BASIC, LOWER), BASIC)
    return basis_of(unknowns, states)


def one_norm_basis(
    matrix: np.ndarray, ranges: Ranges, pattern: np.ndarray, z: np.ndarray, lower: float
) -> Basis | None:
    """A basis for the rows of `OneNorm`: unknowns (z, slacks above, slacks below).

    Arguments and result: as `infinity_basis`.
    """
    z, free = _approach(matrix, ranges, z, lower, (1.0,) * ROUNDS)
    columns = matrix[:, free]
    value = matrix @ z
    size, count = matrix.shape[1], int(free.sum())
    with np.errstate(invalid="ignore"):
        distance = np.minimum(np.abs(value - ranges.high), np.abs(value - ranges.low))
    if len(value) < count:
        return None
    near = np.argsort(distance)[: int(1.3 * count) + 10]
    floor = 0.01 * distance[near[-1]] + 1e-300
    tight = near[_independent(columns[near] / (distance[near] + floor)[:, None], count)]
    point = np.where(free, z, lower)
    point[free] = np.linalg.lstsq(
        columns[tight], _nearest(value, ranges)[tight] - matrix[tight] @ np.where(free, 0, z)
    )[0]
    value = matrix @ point
    states = np.full(len(value), BASIC)
    states[value > ranges.high] = UPPER
    states[value < ranges.low] = LOWER
    states[tight] = UPPER
    upper_side = np.abs(value - ranges.high) <= np.abs(value - ranges.low)
    states[tight[~upper_side[tight]]] = LOWER
    basic = np.ones(len(value), dtype=bool)
    basic[tight] = False
    over = np.where(basic & (states == UPPER), BASIC, LOWER)
    under = np.where(basic & (states == LOWER), BASIC, LOWER)[pattern]
    unknowns = np.concatenate([np.where(free, BASIC, LOWER), over, under])
    assert len(unknowns) == size + len(value) + int(pattern.sum())
    return basis_of(unknowns, states)


def relaxed_basis(
    matrix: np.ndarray, x: np.ndarray, ranges: Ranges, z: np.ndarray, lower: float
) -> Basis | None:
    """A basis for the rows of `Relaxed`, the unknowns of which are z alone.

    The program presses each row against the limit on the side of its observation, as hard as that
    is large: a sum of weighted distances, minimised by reweighting with a steep price on what is
    beyond a limit.

    Arguments:
        matrix: A, ``(n, k)``.
        x: The observation, ``(n,)``, no less than 0 for ReLU.
        ranges: Of `Relaxed.ranges`.
        z: The least-squares point, ``(k,)``.
        lower: Of each entry of z.

    Returns:
        None where there are too few rows to choose from.
    """
    sign = np.where(x >= 0, 1.0, -1.0)
    target = np.where(x >= 0, ranges.high, ranges.low)
    force = np.abs(x)
    z = np.maximum(z, lower)
    for price in PRICES:
        slack = sign * (target - matrix @ z)
        near = np.maximum(np.abs(slack), FLOOR * max(np.abs(slack).max(), 1e-300))
        weights = np.where(slack > 0, force, price * (force + force.mean())) / near
        gradient = -matrix.T @ (weights * sign * slack)
        free = (z > lower) | (gradient < 0)
        z[free] += _newton(matrix[:, free], weights, gradient[free])
        z = np.maximum(z, lower)
    free = z > lower
    count = int(free.sum())
    if len(x) < count:
        return None
    slack = np.abs(target - matrix @ z)
    near = np.argsort(slack)[: int(1.3 * count) + 10]
    floor = 0.01 * slack[near[-1]] + 1e-300
    tight = near[_independent(matrix[near][:, free] / (slack[near] + floor)[:, None], count)]
    states = np.full(len(x), BASIC)
    states[tight] = np.where(sign[tight] > 0, UPPER, LOWER)
    return basis_of(np.where(free, BASIC, LOWER), states)


def _approach(
    matrix: np.ndarray, ranges: Ranges, z: np.ndarray, lower: float, orders: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """A point of small p-norm of the misfit, and which of its entries are off their limit."""
    z = np.maximum(z, lower)
    if lower > -np.inf:
        orders = (2.0, 2.0, 2.0, *orders)
    for order in orders:
        weights, scaled, signed = _weighted(matrix, matrix @ z, ranges, order)
        if len(weights) == 0:  # all rows are met
            break
        gradient = scaled.T @ (weights * signed)
        free = (z > lower) | (gradient < 0)
        step = _newton(scaled[:, free], weights, gradient[free])
        if order > 2:
            step *= _length(scaled[:, free] @ step, signed, order)
        z[free] = np.maximum(z[free] + step, lower)
    return z, z > lower


def _weighted(
    matrix: np.ndarray, value: np.ndarray, ranges: Ranges, order: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that are not met: weights ``(m,)``, scaled rows ``(m, k)``, residuals ``(m,)``."""
    above = (value - ranges.high) / ranges.high_rate
    below = (ranges.low - value) / ranges.low_rate
    upper = above >= below
    misfit = np.maximum(above, below)
    share = np.maximum(misfit / max(misfit.max(), 1e-300), 0)
    if order > 1:
        weights = np.where(share > 0, share ** (order - 2), 0)
    else:
        weights = np.where(share > 0, 1 / np.maximum(share, FLOOR), 0)
    kept = weights > 1e-12 * weights.max()
    rates = np.where(upper, ranges.high_rate, ranges.low_rate)[kept]
    return weights[kept], matrix[kept] / rates[:, None], np.where(upper, misfit, -misfit)[kept]


def _newton(scaled: np.ndarray, weights: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The step of weighted least squares, slightly regularised."""
    if len(gradient) == 0:  # all entries are at their limit
        return gradient
    normal = scaled.T @ (weights[:, None] * scaled)
    normal[np.diag_indices_from(normal)] += 1e-10 * np.trace(normal) / len(normal) + 1e-300
    return -linalg.solve(normal, gradient, assume_a="pos")


def _length(moved: np.ndarray, signed: np.ndarray, order: float) -> float:
    """Which multiple of a step makes the p-norm of the residuals smallest; 0 if none does."""
    largest = np.abs(signed).max()
    lengths = np.array([0.0, 0.25, 1.0, 2.0, (order - 1) / 2]) / (order - 1)
    trials = np.abs(signed[:, None] + lengths * moved[:, None]) / largest
    return float(lengths[(trials**order).sum(0).argmin()])


def _independent(rows: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` rows, large and far from dependent, by pivoted QR."""
    _, order = linalg.qr(rows.T, mode="r", pivoting=True)
    return order[:count]


def _nearest(value: np.ndarray, ranges: Ranges) -> np.ndarray:
    """The limit of each row that its value is nearer to."""
    upper = np.abs(value - ranges.high) <= np.abs(value - ranges.low)
    return np.where(upper, ranges.high, ranges.low)
