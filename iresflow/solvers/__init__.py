"""Solvers of x + g(x) = y, and the driver that certifies what they return."""

from iresflow.solvers.anderson import Anderson
from iresflow.solvers.base import Arithmetic, Proposer, Solution, Solver
from iresflow.solvers.broyden import Broyden
from iresflow.solvers.driver import solve
from iresflow.solvers.fixed_point import FixedPoint
from iresflow.solvers.implicit import attach

__all__ = [
    "Anderson",
    "Arithmetic",
    "Broyden",
    "FixedPoint",
    "Proposer",
    "Solution",
    "Solver",
    "attach",
    "solve",
]
