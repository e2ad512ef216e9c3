"""Solvers of x + g(x) = y, and the driver that certifies what they return."""

from iresflow.solvers.base import Solution, Solver, solve
from iresflow.solvers.fixed_point import FixedPoint

__all__ = ["FixedPoint", "Solution", "Solver", "solve"]
