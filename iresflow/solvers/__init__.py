"""Solvers of x + g(x) = y, and the driver that certifies what they return."""

from iresflow.solution import Solution
from iresflow.solvers.anderson import Anderson
from iresflow.solvers.base import JacobianProduct, Proposer, RoundedMap, Solver
from iresflow.solvers.broyden import Broyden
from iresflow.solvers.driver import solve
from iresflow.solvers.fixed_point import FixedPoint
from iresflow.solvers.implicit import attach

__all__ = [
    "Anderson",
    "Broyden",
    "FixedPoint",
    "JacobianProduct",
    "Proposer",
    "RoundedMap",
    "Solution",
    "Solver",
    "attach",
    "solve",
]
