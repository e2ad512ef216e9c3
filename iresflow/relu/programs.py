"""Linear programs, solved by HiGHS through scipy, with outcomes that are told apart.

Programs that are solved again and again with small changes are those of `iresflow.relu.warm`.
"""

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from scipy.optimize import linprog

from iresflow.errors import LinearProgramError
from iresflow.relu.networks.affine import Matrix

__all__ = ["Program", "Solved", "Status", "feasible", "solve_program", "unsolved"]

Bounds = tuple[float | np.ndarray, float | np.ndarray]
"""Lower and upper limits of the unknowns, each a number or an array ``(n,)``."""

Status = Literal["optimal", "infeasible", "unbounded"]
"""How a program may end."""

STATUS: dict[int, Status] = {
    0: "optimal",
    2: "infeasible",
    3: "unbounded",
}


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

    status: Status
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
            return unsolved(status)
    raise LinearProgramError(f"HiGHS ended with: {result.message}")


def unsolved(status: Status) -> Solved:
    """How a program ended that has no solution."""
    return Solved(status, None, np.inf if status == "infeasible" else -np.inf)


def feasible(solved: Solved) -> Solved:
    """How a program ended that has a feasible point: anything else is the solver's fault.

    Raises:
        LinearProgramError: it ended infeasible.
    """
    if solved.status == "infeasible":
        raise LinearProgramError("HiGHS calls a program infeasible that has a feasible point")
    return solved
