"""Solvers of x + g(x) = y, and the driver that certifies what they return."""

from iresflow.solvers.base import Arithmetic, Solution, Solver, solve
from iresflow.solvers.fixed_point import FixedPoint
from iresflow.solvers.implicit import attach

__all__ = ["Arithmetic", "FixedPoint", "Solution", "Solver", "attach", "solve"]
