"""Linear programs that are solved again and again with small changes, by HiGHS with warm starts.

A program starts from any basis, one of a program before or a guess, or with another cost from
where it ended: scipy, through which `iresflow.relu.programs` solves single ones, neither takes a
basis nor gives one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, final

import numpy as np
from scipy import sparse

from iresflow.errors import LinearProgramError
from iresflow.extras import import_extra
from iresflow.relu.programs import Program, Solved, Status, unsolved

__all__ = [
    "Basis",
    "RangedProgram",
    "Simplex",
    "WarmSolution",
    "basis_of",
    "solve_costs",
    "solve_ranged",
]

if TYPE_CHECKING:
    import highspy

OUTCOMES: dict[str, Status] = {
    "kOptimal": "optimal",
    "kInfeasible": "infeasible",
    "kUnbounded": "unbounded",
}
"""What HiGHS calls them."""

STATES = ("kBasic", "kLower", "kUpper")
"""Of columns and rows in a basis, by their codes, as HiGHS calls them."""

TOLERANCE = 1e-9
"""Largest violation of a constraint, primal and dual; HiGHS allows 1e-10 and more."""


@cache
def _highs() -> ModuleType:
    """The solver, which the rest of `iresflow.relu` can do without."""
    return import_extra("highspy", "relu")


class Simplex(Enum):
    """The simplex method by HiGHS' number for it.

    The primal one where a change leaves the old point feasible (limits that are taken away), the
    dual one where it leaves its prices optimal (limits that move).
    """

    DUAL = 1
    PRIMAL = 4


@final
@dataclass(frozen=True, eq=False)
class Basis:
    """Which columns and rows are at a limit.

    Arguments:
        held: As HiGHS holds it.
    """

    held: "highspy.HighsBasis"


@final
@dataclass(frozen=True, eq=False)
class RangedProgram:
    """Minimise ``cost @ v`` subject to row_lower <= M v <= row_upper and lower <= v <= upper.

    Arguments:
        cost: ``(c,)``.
        matrix: M, ``(r, c)``, sparse by columns.
        row_lower, row_upper: ``(r,)``, infinities allowed.
        lower, upper: ``(c,)``, infinities allowed.
    """

    cost: np.ndarray
    matrix: sparse.csc_array
    row_lower: np.ndarray
    row_upper: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


@final
@dataclass(frozen=True, eq=False)
class WarmSolution:
    """How a program ended.

    Attributes:
        status: ``optimal``, ``infeasible`` or ``unbounded``.
        values: The solution ``(c,)``, None where there is none.
        objective: The smallest cost; NaN where there is none.
        iterations: Of the simplex method.
        basis: To start the next program of these shapes from.
    """

    status: Status
    values: np.ndarray | None
    objective: float
    iterations: int
    basis: Basis


def basis_of(columns: np.ndarray, rows: np.ndarray) -> Basis:
    """A basis from codes: 0 basic, 1 at the lower, 2 at the upper limit.

    Arguments:
        columns: ``(c,)`` integers.
        rows: ``(r,)`` integers; as many entries of both together are 0 as there are rows.
    """
    highs = _highs()
    states = [getattr(highs.HighsBasisStatus, name) for name in STATES]
    held = highs.HighsBasis()
    held.col_status = [states[code] for code in columns.tolist()]
    held.row_status = [states[code] for code in rows.tolist()]
    held.valid = True
    return Basis(held)


def solve_ranged(
    program: RangedProgram,
    start: Basis | None = None,
    simplex: Simplex = Simplex.DUAL,
    *,
    tolerance: float = TOLERANCE,
) -> WarmSolution:
    """Solves a program, from a basis if one is given.

    Arguments:
        program: What to solve.
        start: Of a program of the same shapes.
        simplex: The method to go on with from there; without a basis it is the dual one.
        tolerance: Largest violation of a constraint.

    Raises:
        LinearProgramError: the solver ended without an answer.
    """
    solver = _solver(program, tolerance)
    if start is not None:
        solver.setOptionValue("simplex_strategy", simplex.value)
        solver.setBasis(start.held)
    status = _run(solver)
    information = solver.getInfo()
    optimal = status == "optimal"
    values = np.array(solver.getSolution().col_value) if optimal else None
    return WarmSolution(
        status,
        values,
        float(information.objective_function_value) if optimal else float("nan"),
        int(information.simplex_iteration_count),
        Basis(solver.getBasis()),
    )


def solve_costs(
    program: Program, costs: Iterable[np.ndarray], *, tolerance: float = TOLERANCE
) -> Iterator[Solved]:
    """Solves a program for one cost ``(n,)`` after the other, each from where the last one ended.

    A change of cost leaves that corner feasible. All of it takes a fifth of the time of single
    programs.

    Arguments:
        program: The constraints; its own cost is not used.
        costs: As many as wanted.
        tolerance: Largest violation of a constraint.

    Yields:
        For each cost, how it ended; without multipliers.

    Raises:
        LinearProgramError: the solver ended without an answer.
    """
    size = len(program.cost)
    solver = _solver(_ranged(program), tolerance)
    solver.setOptionValue("simplex_strategy", Simplex.PRIMAL.value)
    places = np.arange(size, dtype=np.int32)
    for cost in costs:
        solver.changeColsCost(size, places, np.asarray(cost, dtype=float))
        status = _run(solver)
        if status == "optimal":
            x = np.array(solver.getSolution().col_value)
            yield Solved(status, x, float(cost @ x))
        else:
            yield unsolved(status)


def _ranged(program: Program) -> RangedProgram:
    size = len(program.cost)
    below, below_side = program.below or (np.zeros((0, size)), np.zeros(0))
    equal, equal_side = program.equal or (np.zeros((0, size)), np.zeros(0))
    lower, upper = (
        np.array(np.broadcast_to(np.asarray(bound, dtype=float), size)) for bound in program.bounds
    )
    return RangedProgram(
        program.cost,
        sparse.csc_array(sparse.vstack([sparse.csc_array(below), sparse.csc_array(equal)])),
        np.concatenate([np.full(len(below_side), -np.inf), equal_side]),
        np.concatenate([below_side, equal_side]),
        lower,
        upper,
    )


def _solver(program: RangedProgram, tolerance: float) -> "highspy.Highs":
    solver = _highs().Highs()
    solver.silent()
    for option, value in {
        "threads": 1,
        "solver": "simplex",
        # It would forget the start. Rows are dense and none is redundant as a rule, so that it
        # costs more than it finds.
        "presolve": "off",
        "primal_feasibility_tolerance": tolerance,
        "dual_feasibility_tolerance": tolerance,
    }.items():
        solver.setOptionValue(option, value)
    if solver.passModel(_model(program)) == _highs().HighsStatus.kError:
        raise LinearProgramError("HiGHS does not take the program: a value of it is out of range")
    return solver


def _run(solver: "highspy.Highs") -> Status:
    solver.run()
    status = OUTCOMES.get(solver.getModelStatus().name)
    if status is None:
        # A warm start may run into numerical trouble that a cold one doesn't have.
        solver.clearSolver()
        solver.setOptionValue("simplex_strategy", Simplex.DUAL.value)
        solver.setOptionValue("presolve", "on")
        solver.run()
        status = OUTCOMES.get(solver.getModelStatus().name)
    if status is None:
        name = solver.modelStatusToString(solver.getModelStatus())
        raise LinearProgramError(f"HiGHS ended with: {name}")
    return status


def _model(program: RangedProgram) -> "highspy.HighsLp":
    highs = _highs()
    model = highs.HighsLp()
    model.num_row_, model.num_col_ = program.matrix.shape
    model.col_cost_ = program.cost
    model.col_lower_, model.col_upper_ = program.lower, program.upper
    model.row_lower_, model.row_upper_ = program.row_lower, program.row_upper
    model.a_matrix_.format_ = highs.MatrixFormat.kColwise
    model.a_matrix_.start_ = program.matrix.indptr
    model.a_matrix_.index_ = program.matrix.indices
    model.a_matrix_.value_ = program.matrix.data
    return model
