"""Linear programs whose answer is known, and how the others end."""

import numpy as np
import pytest
from scipy import sparse

from iresflow.errors import LinearProgramError
from iresflow.relu.programs import Program, Solved, feasible, solve_program

TRIANGLE = (np.array([[-1.0, 0], [0, -1], [1, 1]]), np.array([0.0, 0, 1]))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_optimum_and_duals(form):
    matrix, side = TRIANGLE
    solved = solve_program(Program(np.array([-1.0, -2]), below=(form(matrix), side)))
    assert solved.optimal
    np.testing.assert_allclose(solved.x, [0, 1], atol=1e-9)
    assert solved.value == pytest.approx(-2)
    # Stationarity of the Lagrangian: c = G^T duals where no bound is active.
    np.testing.assert_allclose(matrix.T @ solved.below_duals, [-1, -2], atol=1e-9)


def test_infeasible_and_unbounded_are_told_apart():
    matrix, side = TRIANGLE
    infeasible = Program(np.zeros(2), below=(matrix, side - 2))
    unbounded = Program(np.array([-1.0, 0]), below=(matrix[:2], side[:2]))
    assert solve_program(infeasible).status == "infeasible"
    assert solve_program(infeasible).value == np.inf
    assert solve_program(unbounded).status == "unbounded"
    assert solve_program(unbounded).value == -np.inf


def test_equality_and_bounds():
    program = Program(
        np.array([1.0, 1, 0]),
        equal=(np.array([[1.0, 1, 1]]), np.array([2.0])),
        bounds=(0.0, np.array([np.inf, np.inf, 1.5])),
    )
    solved = solve_program(program)
    assert solved.value == pytest.approx(0.5)
    assert solved.x[2] == pytest.approx(1.5)


def test_gives_up_by_name():
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((800, 400))
    program = Program(generator.standard_normal(400), below=(matrix, np.ones(800)))
    with pytest.raises(LinearProgramError, match="ime limit"):
        solve_program(program, seconds=1e-6)


def test_refuses_what_is_not_finite():
    with pytest.raises(ValueError):
        solve_program(Program(np.array([np.nan]), below=(np.eye(1), np.ones(1))))


def test_feasible_programs_must_not_end_infeasible():
    solved = Solved("unbounded", None, -np.inf)
    assert feasible(solved) is solved
    with pytest.raises(LinearProgramError, match="has a feasible point"):
        feasible(Solved("infeasible", None, np.inf))
