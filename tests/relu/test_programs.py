"""Linear programs, against scipy, with every status."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from interpreters import BARE, run_program
from scipy import sparse
from scipy.optimize import linprog

from iresflow.errors import LinearProgramError
from iresflow.relu import programs
from iresflow.relu.programs import Program, feasible, solve, solve_costs


def program(cost, rows, row_lower, row_upper, lower=-np.inf, upper=np.inf):
    rows = sparse.csc_array(np.array(rows, dtype=float))
    size = rows.shape[1]
    return Program(
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
    found = solve(program(cost, rows, low, high))
    oracle = linprog(
        cost,
        A_ub=np.vstack([rows, -rows]),
        b_ub=np.concatenate([high, -low]),
        bounds=(None, None),
    )
    assert found.status == "optimal"
    assert found.value == pytest.approx(oracle.fun, abs=1e-8)
    assert np.allclose(found.x, oracle.x, atol=1e-7)


def test_a_basis_saves_iterations():
    rng = np.random.default_rng(0)
    rows, inside = rng.standard_normal((60, 20)), rng.standard_normal(20)
    cost = rng.standard_normal(20)
    first = program(cost, rows, rows @ inside - 1, rows @ inside + 1)
    solved = solve(first)
    assert solved.iterations > 5
    assert solve(first, solved.basis).iterations == 0
    wider = program(cost, rows, rows @ inside - 1.01, rows @ inside + 1)
    warm, cold = solve(wider, solved.basis), solve(wider)
    assert warm.value == pytest.approx(cold.value, abs=1e-8)
    assert warm.iterations < cold.iterations


def test_statuses():
    infeasible = solve(program([1, 1], [[1, 0], [1, 0]], [1, -np.inf], [np.inf, 0]))
    assert infeasible.status == "infeasible" and infeasible.x is None
    assert infeasible.value == np.inf
    unbounded = solve(program([1, 0], [[1, 1]], [0], [1]))
    assert unbounded.status == "unbounded" and unbounded.x is None
    assert unbounded.value == -np.inf


def test_a_solver_without_an_answer_is_an_error():
    made = program([1], [[1e300]], [0], [1])
    with pytest.raises(LinearProgramError, match="HiGHS"):
        solve(made)


TRIANGLE = (np.array([[-1.0, 0], [0, -1], [1, 1]]), np.array([0.0, 0, 1]))


def below(cost, matrix, side):
    return Program(np.array(cost, dtype=float), matrix, np.full(len(side), -np.inf), side)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_optimum_and_multipliers(form):
    matrix, side = TRIANGLE
    solved = solve(below([-1, -2], form(matrix), side))
    assert solved.optimal
    np.testing.assert_allclose(solved.x, [0, 1], atol=1e-9)
    assert solved.value == pytest.approx(-2)
    # Stationarity of the Lagrangian: c = G^T multipliers where no bound is active.
    np.testing.assert_allclose(matrix.T @ solved.multipliers, [-1, -2], atol=1e-9)


def test_a_thin_set_is_not_called_empty():
    """Rows between which nothing but a line lies: with presolve, solvers err here."""
    generator = np.random.default_rng(3)
    for _ in range(50):
        rows = generator.standard_normal((6, 3))
        matrix, side = np.concatenate([rows, -rows]), np.zeros(12)
        assert solve(below(generator.standard_normal(3), matrix, side)).status == "optimal"


def test_equality_and_bounds():
    two = np.array([2.0])
    upper = np.array([np.inf, np.inf, 1.5])
    solved = solve(Program(np.array([1.0, 1, 0]), np.ones((1, 3)), two, two, 0.0, upper))
    assert solved.value == pytest.approx(0.5)
    assert solved.x[2] == pytest.approx(1.5)


def test_nothing_is_printed():
    """HiGHS greets with a banner in the first program of a process."""
    program = (
        "import numpy as np; from iresflow.relu.programs import Program, solve;"
        "print('before', flush=True);"
        "solve(Program(np.ones(1), np.ones((1, 1)), np.ones(1), np.ones(1)));"
        "solve(Program(np.ones(1), np.ones((1, 1)), np.ones(1), -np.ones(1)));"
        "print('after')"
    )
    ended = run_program(program, imported=BARE)
    assert (ended.stdout.split(), ended.stderr) == (["before", "after"], "")


def test_refuses_what_is_not_finite():
    for cost, matrix in (([np.nan], np.eye(1)), ([1.0], np.array([[np.inf]]))):
        with pytest.raises(ValueError, match="not finite"):
            solve(below(cost, matrix, np.ones(1)))


def test_feasible_programs_must_not_end_infeasible():
    matrix, side = TRIANGLE
    unbounded = solve(below([-1, 0], matrix[:2], side[:2]))
    assert feasible(unbounded) is unbounded
    with pytest.raises(LinearProgramError, match="has a feasible point"):
        feasible(solve(below([1, 0], matrix, side - 2)))


class Stubborn:
    """A solver that has no answer at first."""

    def __init__(self, *answers):
        self.answers, self.options = list(answers), []

    def setOptionValue(self, name, value):
        self.options.append((name, value))

    def clearSolver(self):
        self.options.append("cleared")

    def run(self):
        self.answer = self.answers.pop(0)

    def getModelStatus(self):
        return SimpleNamespace(name=self.answer)


@pytest.mark.parametrize("warm", [False, True])
def test_other_methods_are_tried_before_the_solver_gives_up(warm, monkeypatch):
    monkeypatch.setattr(programs, "_solution", lambda solver, status: status)
    silent = ["kUnknown"] * (2 + warm)
    assert programs._run(Stubborn(*silent, "kOptimal"), warm=warm) == "optimal"
    # With presolve an empty set is not believed; without, it is.
    told = Stubborn(*["kUnknown"] * warm, "kInfeasible", "kInfeasible")
    assert programs._run(told, warm=warm) == "infeasible"
    assert ("cleared" in told.options) and told.options.count(("presolve", "on")) == 1
    with pytest.raises(LinearProgramError, match="kSolveError"):
        programs._run(Stubborn(*silent, "kSolveError"), warm=warm)


def test_many_costs_as_one_by_one():
    generator = np.random.default_rng(1)
    for form in (np.asarray, sparse.csr_array):
        matrix = form(generator.standard_normal((32, 6)))
        low, high = np.full(32, -np.inf), np.ones(32)
        low[:2] = high[:2] = 0
        program = Program(np.zeros(6), matrix, low, high, -1.0, np.full(6, 2.0))
        costs = generator.standard_normal((10, 6))
        many = [solved.value for solved in solve_costs(program, costs)]
        single = [solve(replace(program, cost=cost)).value for cost in costs]
        np.testing.assert_allclose(many, single, atol=1e-8)


def test_many_costs_tell_the_outcomes_apart():
    matrix, side = TRIANGLE
    open_below = below([0, 0], matrix[2:], side[2:])
    costs = [np.array([-1.0, -1]), np.array([1.0, 0]), np.array([-2.0, -2])]
    outcomes = [solved.status for solved in solve_costs(open_below, costs)]
    assert outcomes == ["optimal", "unbounded", "optimal"]
    infeasible = below([0, 0], matrix, side - 2)
    assert [solved.status for solved in solve_costs(infeasible, costs[:1])] == ["infeasible"]
    assert list(solve_costs(infeasible, [])) == []
