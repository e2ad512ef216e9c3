"""Linear programs, solved by HiGHS, with outcomes that are told apart.

A program starts from nothing, or from the basis of one before that had its shapes. HiGHS comes
with an extra, and only what solves programs needs it.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from scipy import sparse

from iresflow.errors import LinearProgramError
from iresflow.extras import import_extra
from iresflow.relu.networks.affine import Matrix

__all__ = ["Basis", "Program", "Solution", "Status", "feasible", "solve", "solve_costs"]

if TYPE_CHECKING:
    import highspy

Status = Literal["optimal", "infeasible", "unbounded"]
"""How a program may end."""

OUTCOMES: dict[str, Status] = {
    "kOptimal": "optimal",
    "kInfeasible": "infeasible",
    "kUnbounded": "unbounded",
}
"""What HiGHS calls them."""

TOLERANCE = 1e-9
"""Largest violation of a constraint, primal and dual; HiGHS allows 1e-10 and more."""


DUAL, PRIMAL = 1, 4
"""HiGHS' numbers of the simplex methods.

The primal one goes on where a change leaves the old point feasible, the dual one where it leaves
its prices optimal: limits that move.
"""


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
class Program:
    """Minimise ``cost @ x`` subject to row_lower <= M x <= row_upper and lower <= x <= upper.

    Arguments:
        cost: ``(n,)``.
        matrix: M, ``(r, n)``.
        row_lower, row_upper: ``(r,)``, infinities allowed.
        lower, upper: Each a number or ``(n,)``, infinities allowed.
    """

    cost: np.ndarray
    matrix: Matrix
    row_lower: np.ndarray
    row_upper: np.ndarray
    lower: np.ndarray | float = -np.inf
    upper: np.ndarray | float = np.inf


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """How a program ended.

    Attributes:
        status: ``optimal``, ``infeasible`` or ``unbounded``.
        x: The solution, ``(n,)``; None where there is none.
        value: The smallest cost; infinite where there is none, and minus that where unbounded.
        multipliers: Of the rows, ``(r,)``: at most 0 for a row at its upper limit, at least 0 at
            its lower one; None where there is no solution.
        iterations: Of the simplex method.
        basis: To start the next program of these shapes from.
    """

    status: Status
    x: np.ndarray | None
    value: float
    multipliers: np.ndarray | None
    iterations: int
    basis: Basis

    @property
    def optimal(self) -> bool:
        """Whether there is a solution."""
        return self.status == "optimal"


def solve(
    program: Program, start: Basis | None = None, *, tolerance: float = TOLERANCE
) -> Solution:
    """Solves a program by the dual simplex method, from a basis if one is given.

    Arguments:
        program: What to solve.
        start: Of a program of the same shapes.
        tolerance: Largest violation of a constraint.

    Raises:
        ValueError: a cost or an entry of the matrix that is not finite.
        LinearProgramError: the solver ended without an answer.
    """
    solver = _solver(program, tolerance)
    if start is not None:
        solver.setBasis(start.held)
    return _run(solver, warm=start is not None)


def solve_costs(
    program: Program, costs: Iterable[np.ndarray], *, tolerance: float = TOLERANCE
) -> Iterator[Solution]:
    """Solves a program for one cost ``(n,)`` after the other, each from where the last one ended.

    A change of cost leaves that corner feasible. All of it takes a fifth of the time of single
    programs.

    Arguments:
        program: The constraints; its own cost is not used.
        costs: As many as wanted.
        tolerance: Largest violation of a constraint.

    Yields:
        For each cost, how it ended.

    Raises:
        LinearProgramError: the solver ended without an answer.
    """
    solver = _solver(program, tolerance)
    solver.setOptionValue("simplex_strategy", PRIMAL)
    places = np.arange(len(program.cost), dtype=np.int32)
    for cost in costs:
        solver.changeColsCost(len(places), places, np.asarray(cost, dtype=float))
        yield _run(solver, warm=True)


def feasible(solution: Solution) -> Solution:
    """How a program ended that has a feasible point: anything else is the solver's fault.

    Raises:
        LinearProgramError: it ended infeasible.
    """
    if solution.status == "infeasible":
        raise LinearProgramError("HiGHS calls a program infeasible that has a feasible point")
    return solution


WARM = ("off", DUAL)
COLD = (("on", DUAL), ("off", DUAL), ("off", PRIMAL))
"""Whether a program is presolved, and by which method, until one has an answer."""


@cache
def _highs() -> ModuleType:
    module = import_extra("highspy", "relu")
    with _silenced():
        module.Highs()  # the first one of a process prints a banner, before it takes any option
    return module


@contextmanager
def _silenced() -> Iterator[None]:
    """Sends what compiled code writes to the standard output nowhere."""
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _solver(program: Program, tolerance: float) -> "highspy.Highs":
    solver = _highs().Highs()
    solver.silent()
    for option, value in {
        "threads": 1,
        "solver": "simplex",
        "primal_feasibility_tolerance": tolerance,
        "dual_feasibility_tolerance": tolerance,
    }.items():
        solver.setOptionValue(option, value)
    if solver.passModel(_model(program)) == _highs().HighsStatus.kError:
        raise LinearProgramError("HiGHS does not take the program: a value of it is out of range")
    return solver


def _run(solver: "highspy.Highs", *, warm: bool) -> Solution:
    # Presolve would forget the start. It may also leave open whether a program is infeasible or
    # unbounded, and call one infeasible whose feasible points form a thin set: with it, only an
    # optimum is believed. And a warm start may run into trouble that a cold one doesn't have.
    name = ""
    for attempt, (presolve, simplex) in enumerate((WARM, *COLD) if warm else COLD):
        solver.setOptionValue("presolve", presolve)
        if attempt or not warm:
            solver.clearSolver()
            solver.setOptionValue("simplex_strategy", simplex)
        solver.run()
        name = solver.getModelStatus().name
        status = OUTCOMES.get(name)
        if status == "optimal" or (status is not None and presolve == "off"):
            return _solution(solver, status)
    raise LinearProgramError(f"HiGHS ended with: {name}")


def _solution(solver: "highspy.Highs", status: Status) -> Solution:
    information = solver.getInfo()
    iterations, basis = int(information.simplex_iteration_count), Basis(solver.getBasis())
    if status != "optimal":
        value = np.inf if status == "infeasible" else -np.inf
        return Solution(status, None, value, None, iterations, basis)
    found = solver.getSolution()
    return Solution(
        status,
        np.array(found.col_value),
        float(information.objective_function_value),
        np.array(found.row_dual),
        iterations,
        basis,
    )


def _model(program: Program) -> "highspy.HighsLp":
    highs, size = _highs(), len(program.cost)
    columns = sparse.csc_array(program.matrix)
    if not (np.isfinite(program.cost).all() and np.isfinite(columns.data).all()):
        raise ValueError("the program holds a cost or an entry of its matrix that is not finite")
    lower, upper = (
        np.array(np.broadcast_to(np.asarray(bound, dtype=float), size))
        for bound in (program.lower, program.upper)
    )
    model = highs.HighsLp()
    model.num_row_, model.num_col_ = columns.shape
    model.col_cost_ = program.cost
    model.col_lower_, model.col_upper_ = lower, upper
    model.row_lower_, model.row_upper_ = program.row_lower, program.row_upper
    model.a_matrix_.format_ = highs.MatrixFormat.kColwise
    model.a_matrix_.start_ = columns.indptr
    model.a_matrix_.index_ = columns.indices
    model.a_matrix_.value_ = columns.data
    return model
