"""The input of one layer from its noisy output, by linear programs.

How whole networks are inverted is in `iresflow.relu.inversion.network_inversion`.
"""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from iresflow.relu.inversion.layer_programs import InfinityNorm, LayerMethod
from iresflow.relu.inversion.least_squares import LeastSquares, consistent, least_squares
from iresflow.relu.inversion.preactivation_ranges import Ranges, observed_ranges
from iresflow.relu.networks.affine import as_array
from iresflow.relu.networks.network import Layer
from iresflow.relu.programs import Basis, Solution, Status, solve
from iresflow.relu.ranks import Verdict, row_lengths

__all__ = [
    "FIRST_EPSILON",
    "LayerInversion",
    "Step",
    "check_observed",
    "check_slope",
    "invert_layer",
]

FIRST_EPSILON = 1e-6
"""Of the largest observation: the threshold to begin with, where none is given."""

TOLERANCE = 1e-8
"""Of the largest observation: reconstruction errors up to this are rounding."""


@final
@dataclass(frozen=True)
class Step:
    """One program of the sequence of growing thresholds.

    Attributes:
        epsilon: The threshold.
        status: ``optimal``, ``infeasible`` or ``unbounded``.
        objective: delta (l-infinity), the sum of the slacks (l1), or minus the correlation; NaN
            without a solution, or where least squares gave that of the relaxed program.
        error: Norm of the layer's output minus the observation; NaN without a solution.
        iterations: Of the simplex method; 0 where least squares already met all rows.
    """

    epsilon: float
    status: Status
    objective: float
    error: float
    iterations: int


@final
@dataclass(frozen=True, eq=False)
class LayerInversion:
    """What was found of a layer's input.

    Attributes:
        layer: The layer's name.
        status: ``optimal`` if a program had a solution; else how the last one ended.
        z: The input found, ``(k,)``; None without one.
        epsilon: The threshold that it was found with.
        objective: Of its program, see `Step`.
        error: Norm of the layer's output there minus the observation: the l-infinity norm for
            that program, else l1.
        active: Rows whose piece of the activation counted as known, ``(n,)`` bool.
        determined: Whether the active rows have full column rank, and so fix z: with ``no`` only
            the inequalities of the other rows could; ``uncertain`` is a rank that numbers of this
            precision don't decide.
        in_range: Whether a noiseless layer gives the observation: ``yes`` if z does, ``no`` if
            the program proves that nothing above ``lower`` does (a misfit above the tolerance).
        spread: The standard deviation of z's entries that the misfit of the active rows makes
            likely, were it independent noise: an estimate, not a bound; infinite where the
            active rows don't determine z.
        steps: All programs.
    """

    layer: str
    status: Status
    z: Tensor | None
    epsilon: float
    objective: float
    error: float
    active: Tensor
    determined: Verdict
    in_range: Literal["yes", "no", "unknown"]
    spread: float
    steps: tuple[Step, ...]


def check_slope(layer: Layer) -> None:
    """Raises ValueError for a slope above 1, with which the programs would not be convex."""
    if not 0 <= layer.slope <= 1:
        raise ValueError(
            f"layer {layer.name} has the negative slope {layer.slope}; allowed is 0 to 1"
        )


def check_observed(layer: Layer, x: Tensor | np.ndarray) -> np.ndarray:
    """An output of a layer as an array ``(n,)``.

    Raises:
        ValueError: another size, or values that are not finite.
    """
    if tuple(x.shape) != (layer.affine.out_size,):
        raise ValueError(
            f"the observation has shape {tuple(x.shape)}; layer {layer.name} gives "
            f"({layer.affine.out_size},)"
        )
    return as_array(x, "the observation", 1)


def invert_layer(
    layer: Layer,
    x: Tensor | np.ndarray,
    method: LayerMethod | None = None,
    *,
    epsilon: float | None = None,
    growth: float = 2.0,
    max_steps: int = 20,
    lower: float = -np.inf,
    tolerance: float = TOLERANCE,
) -> LayerInversion:
    """Finds z with layer(z) near an observation (Algorithms 1 to 3).

    A sequence of programs with thresholds epsilon, growth epsilon, ... until the reconstruction
    error no longer falls; the best is returned. A threshold that leaves the program as it was is
    passed over. A z that meets all rows without error needs no program: it is optimal.

    Arguments:
        layer: With a negative slope from 0 to 1.
        x: The observation, ``(n,)``.
        method: By default `InfinityNorm`.
        epsilon: The first threshold, a guess of the largest noise: above 0. By default 1e-6 of
            the largest observation, which is for observations without noise.
        growth: alpha, above 1.
        max_steps: Programs at most.
        lower: What each entry of z is at least, such as 0 for the output of a ReLU.
        tolerance: Errors up to this share of the largest observation count as none.

    Raises:
        ValueError: an observation that doesn't fit or is not finite, or another argument that is
            out of range.
        LinearProgramError: HiGHS ended without an answer.
    """
    check_slope(layer)
    values = check_observed(layer, x)
    method = InfinityNorm() if method is None else method
    scale = float(np.abs(values).max(initial=0.0)) or 1.0
    epsilon = FIRST_EPSILON * scale if epsilon is None else epsilon
    _check_numbers(epsilon, growth, lower, tolerance)
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; allowed is 1 or more")
    search = _Search(layer, values, method, lower, tolerance)
    while len(search.steps) < max_steps and search.advance(epsilon):
        epsilon *= growth
        while search.unchanged(epsilon):
            epsilon *= growth
            if epsilon > growth * scale:
                return search.result()
    return search.result()


@final
class _Search:
    """The sequence of programs for one observation.

    They are solved for x over its largest entry, and A over its longest row, since the solver's
    tolerance is a number; ``scale`` and ``unit`` turn outputs and inputs back.
    """

    def __init__(
        self, layer: Layer, x: np.ndarray, method: LayerMethod, lower: float, tolerance: float
    ) -> None:
        matrix = layer.affine.matrix()
        longest = float(row_lengths(matrix).max(initial=0.0)) or 1.0
        self.scale = float(np.abs(x).max(initial=0.0)) or 1.0
        self.unit = self.scale / longest
        self.layer, self.method, self.tolerance = layer, method, tolerance
        self.x, self.bias = x / self.scale, layer.affine.bias.numpy() / self.scale
        self.matrix, self.lower = matrix / longest, lower / self.unit
        self.steps: list[Step] = []
        self.best: tuple[Step, np.ndarray, LeastSquares, Ranges] | None = None
        self.misfit = 0.0
        self._ranges: Ranges | None = None
        self._observed: Ranges | None = None
        self._squares: LeastSquares | None = None
        self._basis: Basis | None = None

    def unchanged(self, epsilon: float) -> bool:
        """Whether the last program would only be repeated."""
        return self._limits(epsilon).same(self._ranges)

    def advance(self, epsilon: float) -> bool:
        """Solves the next program; returns whether another one may be better."""
        observed = observed_ranges(self.bias, self.layer.slope, self.x, epsilon / self.scale)
        if self._squares is None or not observed.same(self._observed):
            self._observed, self._squares = observed, least_squares(self.matrix, observed)
        squares, ranges = self._squares, self._limits(epsilon)
        status: Status = "optimal"
        z: np.ndarray | None
        if consistent(self.matrix, observed, squares.z, self.lower, self.tolerance):
            # Of the relaxed program this is the solution with epsilon = 0.
            z, iterations = squares.z, 0
            objective = 0.0 if self.method.fits else np.nan
        else:
            solution = self._solve(ranges)
            status, iterations = solution.status, solution.iterations
            z = None if solution.x is None else solution.x[: self.matrix.shape[1]]
            objective = solution.value if solution.optimal else np.nan
            # A misfit is in units of x, and a correlation in their square.
            objective *= self.scale if self.method.fits else self.scale**2
        error = np.nan if z is None else self._error(z)
        step = Step(epsilon, status, objective, error, iterations)
        self.steps.append(step)
        self._ranges = ranges
        if z is None:
            # Directions that improve for ever do so whatever the threshold.
            return status != "unbounded"
        if self.method.fits:
            self.misfit = max(self.misfit, objective)
        rounding = self.tolerance * self.scale
        if self.best is not None and error >= self.best[0].error - rounding:
            return False
        self.best = (step, z, squares, observed)
        return error > rounding

    def result(self) -> LayerInversion:
        last, rounding = self.steps[-1], self.tolerance * self.scale
        if self.best is None:
            none = torch.zeros(len(self.x), dtype=torch.bool)
            return LayerInversion(
                self.layer.name, last.status, None, last.epsilon, last.objective, np.nan, none,
                "no", "unknown", np.nan, tuple(self.steps),
            )  # fmt: skip
        step, z, squares, observed = self.best
        in_range: Literal["yes", "no", "unknown"] = "unknown"
        if step.error <= rounding:
            in_range = "yes"
        elif self.misfit > rounding or (self.layer.slope == 0 and self.x.min() < -self.tolerance):
            in_range = "no"
        return LayerInversion(
            self.layer.name, "optimal", torch.from_numpy(self.unit * z), step.epsilon,
            step.objective, step.error, torch.from_numpy(squares.active), squares.determined,
            in_range, self._spread(z, squares, observed), tuple(self.steps),
        )  # fmt: skip

    def _limits(self, epsilon: float) -> Ranges:
        return self.method.ranges(self.bias, self.layer.slope, self.x, epsilon / self.scale)

    def _solve(self, ranges: Ranges) -> Solution:
        program = self.method.program(self.matrix, self.x, ranges, self.lower)
        solution = solve(program, self._basis)
        self._basis = solution.basis
        return solution

    def _spread(self, z: np.ndarray, squares: LeastSquares, observed: Ranges) -> float:
        if squares.determined == "no":
            return np.inf
        misfit = (self.matrix @ z - observed.low)[squares.active]
        misfit = misfit / observed.low_rate[squares.active]
        free = max(1, len(misfit) - len(z))
        return float(np.linalg.norm(misfit) / np.sqrt(free) * squares.gain * self.unit)

    def _error(self, z: np.ndarray) -> float:
        output = self.matrix @ z + self.bias
        output = np.where(output > 0, output, self.layer.slope * output)
        return self.scale * float(np.linalg.norm(output - self.x, self.method.order))


def _check_numbers(epsilon: float, growth: float, lower: float, tolerance: float) -> None:
    if not 0 < epsilon < np.inf:
        raise ValueError(f"epsilon is {epsilon}; allowed is a number above 0")
    if not 1 < growth < np.inf:
        raise ValueError(f"growth is {growth}; allowed is a number above 1")
    if np.isnan(lower) or lower == np.inf:
        raise ValueError(f"lower is {lower}; allowed is a number, or -infinity for none")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; allowed is 0 to 1, both excluded")
