"""Linear programs that are solved again and again with small changes, by HiGHS with warm starts.

`iresflow.relu.programs` solves single programs, and many of equal constraints. Here a program
starts from any basis, one of a program before or a guess: scipy neither takes a basis nor gives
one.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal, final

import highspy
import numpy as np
from scipy import sparse

from iresflow.errors import LinearProgramError
from iresflow.relu.programs import OUTCOMES

__all__ = ["Basis", "RangedProgram", "Simplex", "WarmSolution", "basis_of", "solve_ranged"]

Basis = highspy.HighsBasis
"""Which columns and rows are at a limit, as HiGHS holds it."""

ROW_STATES = (
    highspy.HighsBasisStatus.kBasic,
    highspy.HighsBasisStatus.kLower,
    highspy.HighsBasisStatus.kUpper,
)

TOLERANCE = 1e-9
"""Largest violation of a constraint, primal and dual; HiGHS allows 1e-10 and more."""


class Simplex(Enum):
    """The simplex method by HiGHS' number for it.

    The primal one where a change leaves the old point feasible (limits that are taken away), the
    dual one where it leaves its prices optimal (limits that move).
    """

    DUAL = 1
    PRIMAL = 4


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

    status: Literal["optimal", "infeasible", "unbounded"]
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
    basis = Basis()
    basis.col_status = [ROW_STATES[code] for code in columns.tolist()]
    basis.row_status = [ROW_STATES[code] for code in rows.tolist()]
    basis.valid = True
    return basis


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
    solver = highspy.Highs()
    solver.silent()
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("primal_feasibility_tolerance", tolerance)
    solver.setOptionValue("dual_feasibility_tolerance", tolerance)
    # Rows are dense and none is redundant as a rule, so presolve costs more than it finds.
    solver.setOptionValue("presolve", "off")
    if solver.passModel(_model(program)) == highspy.HighsStatus.kError:
        raise LinearProgramError("HiGHS does not take the program: a value of it is out of range")
    if start is not None:
        solver.setOptionValue("simplex_strategy", simplex.value)
        solver.setBasis(start)
    solver.run()
    status = OUTCOMES.get(solver.getModelStatus())
    if status is None:
        # A warm start may run into numerical trouble that a cold one doesn't have.
        solver.clearSolver()
        solver.setOptionValue("simplex_strategy", Simplex.DUAL.value)
        solver.setOptionValue("presolve", "on")
        solver.run()
        status = OUTCOMES.get(solver.getModelStatus())
    if status is None:
        name = solver.modelStatusToString(solver.getModelStatus())
        raise LinearProgramError(f"HiGHS ended with: {name}")
    information = solver.getInfo()
    optimal = status == "optimal"
    values = np.array(solver.getSolution().col_value) if optimal else None
    return WarmSolution(
        status,
        values,
        float(information.objective_function_value) if optimal else float("nan"),
        int(information.simplex_iteration_count),
        solver.getBasis(),
    )


def _model(program: RangedProgram) -> highspy.HighsLp:
    model = highspy.HighsLp()
    model.num_row_, model.num_col_ = program.matrix.shape
    model.col_cost_ = program.cost
    model.col_lower_, model.col_upper_ = program.lower, program.upper
    model.row_lower_, model.row_upper_ = program.row_lower, program.row_upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = program.matrix.indptr
    model.a_matrix_.index_ = program.matrix.indices
    model.a_matrix_.value_ = program.matrix.data
    return model
