"""Programs that go to HiGHS directly, against scipy, with every status."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from iresflow.errors import LinearProgramError
from iresflow.relu.programs import Program, solve_program
from iresflow.relu.warm import RangedProgram, Simplex, basis_of, solve_costs, solve_ranged


def program(cost, rows, row_lower, row_upper, lower=-np.inf, upper=np.inf):
    rows = sparse.csc_array(np.array(rows, dtype=float))
    size = rows.shape[1]
    return RangedProgram(
        np.array(cost, dtype=float),
        rows,
        np.array(row_lower, dtype=float),
        np.array(row_upper, dtype=float),
        np.full(size, float(lower)),
        np.full(size, float(upper)),
    )


@pytest.mark.parametrize("seed", range(8))
def test_is_scipys(seed):
    rng = np.random.default_rng(seed)
    rows, inside = rng.standard_normal((12, 5)), rng.standard_normal(5)
    low, high = rows @ inside - rng.random(12), rows @ inside + rng.random(12)
    cost = rng.standard_normal(5)
    found = solve_ranged(program(cost, rows, low, high))
    oracle = linprog(
        cost,
        A_ub=np.vstack([rows, -rows]),
        b_ub=np.concatenate([high, -low]),
        bounds=(None, None),
    )
    assert found.status == "optimal"
    assert found.objective == pytest.approx(oracle.fun, abs=1e-8)
    assert np.allclose(found.values, oracle.x, atol=1e-7)


@pytest.mark.parametrize("simplex", list(Simplex))
def test_a_basis_saves_iterations(simplex):
    rng = np.random.default_rng(0)
    rows, inside = rng.standard_normal((60, 20)), rng.standard_normal(20)
    cost = rng.standard_normal(20)
    first = program(cost, rows, rows @ inside - 1, rows @ inside + 1)
    solved = solve_ranged(first)
    assert solved.iterations > 5
    assert solve_ranged(first, solved.basis, simplex).iterations == 0
    wider = program(cost, rows, rows @ inside - 1.01, rows @ inside + 1)
    warm, cold = solve_ranged(wider, solved.basis, simplex), solve_ranged(wider)
    assert warm.objective == pytest.approx(cold.objective, abs=1e-8)
    assert warm.iterations < cold.iterations


def test_a_wrong_basis_costs_time_only():
    # z >= 0, z1 + z2 >= 1, cost z1 + 2 z2: started with both rows at their upper limits.
    made = program([1, 2], [[1, 1], [1, -1]], [1, -5], [9, 5], lower=0)
    start = basis_of(np.array([0, 0]), np.array([2, 2]))
    found = solve_ranged(made, start, Simplex.PRIMAL)
    assert found.objective == pytest.approx(1) and np.allclose(found.values, [1, 0])


def test_statuses():
    infeasible = solve_ranged(program([1, 1], [[1, 0], [1, 0]], [1, -np.inf], [np.inf, 0]))
    assert infeasible.status == "infeasible" and infeasible.values is None
    assert np.isnan(infeasible.objective)
    unbounded = solve_ranged(program([1, 0], [[1, 1]], [0], [1]))
    assert unbounded.status == "unbounded" and unbounded.values is None


def test_a_solver_without_an_answer_is_an_error():
    made = program([1], [[1e300]], [0], [1])
    with pytest.raises(LinearProgramError, match="HiGHS"):
        solve_ranged(made)


def test_many_costs_as_one_by_one():
    generator = np.random.default_rng(1)
    for form in (np.asarray, sparse.csr_array):
        matrix = generator.standard_normal((30, 6))
        program = Program(
            np.zeros(6),
            below=(form(matrix), np.ones(30)),
            equal=(form(generator.standard_normal((2, 6))), np.zeros(2)),
            bounds=(-1.0, np.full(6, 2.0)),
        )
        costs = generator.standard_normal((10, 6))
        many = [solved.value for solved in solve_costs(program, costs)]
        single = [solve_program(replace(program, cost=cost)).value for cost in costs]
        np.testing.assert_allclose(many, single, atol=1e-8)


def test_many_costs_tell_the_outcomes_apart():
    matrix, side = np.array([[-1.0, 0], [0, -1], [1, 1]]), np.array([0.0, 0, 1])
    open_below = Program(np.zeros(2), below=(matrix[2:], side[2:]))
    costs = [np.array([-1.0, -1]), np.array([1.0, 0]), np.array([-2.0, -2])]
    outcomes = [solved.status for solved in solve_costs(open_below, costs)]
    assert outcomes == ["optimal", "unbounded", "optimal"]
    infeasible = Program(np.zeros(2), below=(matrix, side - 2))
    assert [solved.status for solved in solve_costs(infeasible, costs[:1])] == ["infeasible"]
    assert list(solve_costs(infeasible, [])) == []
