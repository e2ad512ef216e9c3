"""Linear programs, solved by HiGHS, with outcomes that are told apart.

One program goes through scipy. Many that differ in their cost alone go to HiGHS itself: each
starts from the corner where the one before ended, which takes a fifth of the time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final

import highspy
import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from iresflow.errors import LinearProgramError
from iresflow.relu.affine import Matrix

__all__ = ["Program", "Solved", "feasible", "solve_costs", "solve_program"]

Bounds = tuple[float | np.ndarray, float | np.ndarray]
"""Lower and upper limits of the unknowns, each a number or an array ``(n,)``."""

STATUS: dict[int, Literal["optimal", "infeasible", "unbounded"]] = {
    0: "optimal",
    2: "infeasible",
    3: "unbounded",
}

OUTCOMES: dict[highspy.HighsModelStatus, Literal["optimal", "infeasible", "unbounded"]] = {
    highspy.HighsModelStatus.kOptimal: "optimal",
    highspy.HighsModelStatus.kInfeasible: "infeasible",
    highspy.HighsModelStatus.kUnbounded: "unbounded",
}

PRIMAL_SIMPLEX = 4
"""Of HiGHS' strategies the one that a change of cost leaves feasible."""


@final
@dataclass(frozen=True, eq=False)
class Program:
    """Minimise ``cost @ x`` over x ``(n,)``, subject to what is given of the rest.

    Arguments:
        cost: ``(n,)``.
        below: (G, h) of G x <= h, or None.
        equal: (E, f) of E x = f, or None.
        bounds: Lower and upper limits of x; infinities for none.
    """

    cost: np.ndarray
    below: tuple[Matrix, np.ndarray] | None = None
    equal: tuple[Matrix, np.ndarray] | None = None
    bounds: Bounds = (-np.inf, np.inf)


@final
@dataclass(frozen=True, eq=False)
class Solved:
    """How a program ended.

    Attributes:
        status: ``optimal``, ``infeasible`` or ``unbounded``.
        x: The solution, ``(n,)``; None where there is none.
        value: The smallest cost; infinite where there is none, and minus that where unbounded.
        below_duals: Of the rows of ``below``, at most 0; None where there are none.
        equal_duals: Of the rows of ``equal``; None where there are none.
    """

    status: Literal["optimal", "infeasible", "unbounded"]
    x: np.ndarray | None
    value: float
    below_duals: np.ndarray | None = None
    equal_duals: np.ndarray | None = None

    @property
    def optimal(self) -> bool:
        """Whether there is a solution."""
        return self.status == "optimal"


def solve_program(
    program: Program, *, tolerance: float = 1e-9, seconds: float | None = None
) -> Solved:
    """Solves a linear program.

    Arguments:
        program: What to solve.
        tolerance: Largest violation of a constraint, primal and dual (absolute; from 1e-10 on).
        seconds: Give up after that time; None for no limit.

    Raises:
        ValueError: values that are not finite, or shapes that don't fit.
        LinearProgramError: the solver ended without an answer.
    """
    size = len(program.cost)
    lower, upper = (np.broadcast_to(np.asarray(b, dtype=float), size) for b in program.bounds)
    below, below_side = program.below or (None, None)
    equal, equal_side = program.equal or (None, None)
    # With presolve HiGHS may leave open whether a program is infeasible or unbounded, and it may
    # call one infeasible whose feasible points form a thin set: only an optimum is believed.
    for presolve in (True, False):
        result = linprog(
            program.cost,
            A_ub=below,
            b_ub=below_side,
            A_eq=equal,
            b_eq=equal_side,
            bounds=np.column_stack([lower, upper]),
            method="highs",
            options={
                "presolve": presolve,
                "primal_feasibility_tolerance": tolerance,
                "dual_feasibility_tolerance": tolerance,
                "time_limit": np.inf if seconds is None else seconds,
            },
        )
        status = STATUS.get(result.status)
        if status == "optimal":
            return Solved(
                status,
                result.x,
                float(result.fun),
                None if below is None else result.ineqlin.marginals,
                None if equal is None else result.eqlin.marginals,
            )
        if status is not None and not presolve:
            return Solved(status, None, np.inf if status == "infeasible" else -np.inf)
    raise LinearProgramError(f"HiGHS ended with: {result.message}")


def feasible(solved: Solved) -> Solved:
    """How a program ended that has a feasible point: anything else is the solver's fault.

    Raises:
        LinearProgramError: it ended infeasible.
    """
    if solved.status == "infeasible":
        raise LinearProgramError("HiGHS calls a program infeasible that has a feasible point")
    return solved


def solve_costs(
    program: Program, costs: Iterable[np.ndarray], *, tolerance: float = 1e-9
) -> Iterator[Solved]:
    """Solves a program for one cost ``(n,)`` after the other, each from where the last one ended.

    Arguments:
        program: The constraints; its own cost is not used.
        costs: As many as wanted.
        tolerance: As of `solve_program`.

    Yields:
        For each cost, how it ended; without multipliers.

    Raises:
        LinearProgramError: the solver ended without an answer.
    """
    size = len(program.cost)
    solver = highspy.Highs()
    for option, value in {
        "output_flag": False,
        "presolve": "off",  # it would forget the corner
        "solver": "simplex",
        "simplex_strategy": PRIMAL_SIMPLEX,
        "primal_feasibility_tolerance": tolerance,
        "dual_feasibility_tolerance": tolerance,
    }.items():
        solver.setOptionValue(option, value)
    solver.passModel(_model(program))
    places = np.arange(size, dtype=np.int32)
    for cost in costs:
        solver.changeColsCost(size, places, np.asarray(cost, dtype=float))
        solver.run()
        status = OUTCOMES.get(solver.getModelStatus())
        if status is None:
            what = solver.modelStatusToString(solver.getModelStatus())
            raise LinearProgramError(f"HiGHS ended with: {what}")
        if status == "optimal":
            x = np.array(solver.getSolution().col_value)
            yield Solved(status, x, float(cost @ x))
        else:
            yield Solved(status, None, np.inf if status == "infeasible" else -np.inf)


def _model(program: Program) -> highspy.HighsLp:
    size = len(program.cost)
    below, below_side = program.below or (np.zeros((0, size)), np.zeros(0))
    equal, equal_side = program.equal or (np.zeros((0, size)), np.zeros(0))
    matrix = sparse.csr_array(sparse.vstack([sparse.csr_array(below), sparse.csr_array(equal)]))
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = size, matrix.shape[0]
    model.col_cost_ = np.zeros(size)
    model.col_lower_, model.col_upper_ = (
        np.array(np.broadcast_to(np.asarray(bound, dtype=float), size)) for bound in program.bounds
    )
    model.row_lower_ = np.concatenate([np.full(len(below_side), -np.inf), equal_side])
    model.row_upper_ = np.concatenate([below_side, equal_side])
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = matrix.indptr
    model.a_matrix_.index_ = matrix.indices
    model.a_matrix_.value_ = matrix.data
    return model
