import pytest
import torch

from iresflow import InversionError, NotContractiveError
from iresflow.linearization import FunctionLinearization
from iresflow.solvers import Arithmetic, FixedPoint, solve


def contraction(lipschitz, dim=6, batch=5):
    """Sample-wise maps ``tanh`` of a rotation, scaled to a Lipschitz constant of its own."""
    rotation = torch.linalg.qr(torch.randn(dim, dim)).Q
    scales = lipschitz * torch.linspace(0.01, 1, batch)

    def g(x, index):
        value = scales[index, None] * torch.tanh(x @ rotation)
        # An inner product of `dim` terms, with matrices of absolute values of norm sqrt(dim).
        return value, (dim**1.5 + 2) * x.norm(dim=1) + value.norm(dim=1)

    return g, torch.arange(batch)


def invert(g, y, **settings):
    settings = {"tol": 1e-8, "solver": FixedPoint(5000), **settings}
    return solve([Arithmetic(g, y.dtype)], y, **settings)


def in_two_types(g, rough=None):
    """A map in float64 as a pair of arithmetics, the narrow one rounded or worse."""

    def narrow(x, index):
        value, magnitude = g(x.double(), index)
        return (value if rough is None else rough(value)).float(), magnitude.float()

    def linearize(x, index):
        return FunctionLinearization(lambda p: g(p.double(), index)[0].float(), x)

    return [Arithmetic(narrow, torch.float32, linearize), Arithmetic(g, torch.float64)]


@pytest.mark.parametrize("lipschitz", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_error_is_below_its_bound_and_the_bound_below_the_tolerance(lipschitz, tol):
    g, index = contraction(lipschitz)
    x = torch.randn(5, 6)
    y = x + g(x, index)[0]
    solution = invert(g, y, lipschitz=lipschitz, tol=tol)
    error = (solution.value - x).norm(dim=1)
    assert bool((error <= solution.error).all())
    assert bool((solution.error <= tol).all())
    assert bool((solution.floor < 1e-10).all())


def test_finished_samples_cost_nothing():
    g, _ = contraction(0.9)
    evaluated = []

    def counting(x, index):
        evaluated.append(len(index))
        return g(x, index)

    solution = invert(counting, torch.randn(5, 6), lipschitz=0.9, tol=1e-6)
    assert evaluated == sorted(evaluated, reverse=True)
    assert sum(evaluated) == int(solution.steps.sum())
    assert solution.steps[0] < solution.steps[-1]


@pytest.mark.parametrize("lipschitz", [0.5, 0.95])
def test_float32_bounds_hold_against_float64(lipschitz):
    g, index = contraction(lipschitz, dim=300, batch=40)
    x = 5 * torch.randn(40, 300)
    y = (x + g(x, index)[0]).float()
    narrow, _ = in_two_types(g)
    exact = invert(g, y.double(), lipschitz=lipschitz, tol=1e-10).value
    for tol in (10.0, 0.0):
        solution = solve([narrow], y, lipschitz=lipschitz, tol=tol, solver=FixedPoint(5000))
        error = (solution.value.double() - exact).norm(dim=1)
        assert bool((error <= solution.error.double()).all())
    assert bool((solution.error <= 2 * solution.floor).all())  # tol=0: what float32 allows


@pytest.mark.parametrize("lipschitz", [0.5, 0.95])
def test_float64_certifies_what_float32_iterates(lipschitz):
    g, index = contraction(lipschitz, dim=30, batch=12)
    x = 5 * torch.randn(12, 30)
    y = x + g(x, index)[0]
    wide = []

    def counting(x, index):
        wide.append(len(index))
        return g(x, index)

    narrow, _ = in_two_types(g)
    for tol in (1e-3, 1e-9):
        wide.clear()
        pair = [narrow, Arithmetic(counting, torch.float64)]
        solution = solve(pair, y, lipschitz=lipschitz, tol=tol, solver=FixedPoint(5000))
        error = (solution.value - x).norm(dim=1)
        assert solution.value.dtype == torch.float64
        assert bool((error <= solution.error).all()) and bool((solution.error <= tol).all())
        assert len(wide) <= 3  # Newton's corrections leave little to the expensive type


def test_a_rough_narrow_type_costs_steps_but_no_accuracy():
    g, index = contraction(0.9, dim=10)
    x = torch.randn(5, 10)
    y = x + g(x, index)[0]
    pair = in_two_types(g, rough=lambda value: (value * 4096).round() / 4096)
    narrow = Arithmetic(
        lambda p, i: (pair[0].g(p, i)[0], 1e4 * p.norm(dim=1) + 1e4),
        torch.float32,
        pair[0].linearize,
    )
    solution = solve([narrow, pair[1]], y, lipschitz=0.9, tol=1e-10, solver=FixedPoint())
    assert float((solution.value - x).norm(dim=1).max()) <= 1e-10


@pytest.mark.parametrize("lipschitz", [1.0, 1.5, float("nan"), float("inf")])
def test_expansive_maps_are_refused(lipschitz):
    g, _ = contraction(0.5)
    expected = "a map of mine has .*(not below 1|no Lipschitz bound)"
    with pytest.raises(NotContractiveError, match=expected):
        invert(g, torch.randn(5, 6), lipschitz=lipschitz, context="a map of mine")


@pytest.mark.parametrize("slope", [-0.98, 1.7, -3.0])
def test_a_lipschitz_bound_that_is_not_true_is_found_out(slope):
    with pytest.raises(InversionError, match="a map of mine is no contraction"):
        invert(
            lambda x, i: (slope * x, x.norm(dim=1)),
            torch.randn(5, 6),
            lipschitz=0.9,
            context="a map of mine",
        )


def test_too_few_steps_raise_with_numbers():
    g, _ = contraction(0.99)
    with pytest.raises(
        InversionError, match=r"of 5 samples missed the tolerance .* after 3 steps"
    ):
        invert(g, torch.randn(5, 6), lipschitz=0.99, solver=FixedPoint(3))


def test_steps_of_both_types_count():
    g, _ = contraction(0.5)
    y = torch.randn(5, 6)
    pair = in_two_types(g)
    steps = int(solve(pair, y, lipschitz=0.5, tol=1e-8, solver=FixedPoint()).steps.max())
    with pytest.raises(InversionError, match="missed the tolerance"):
        solve(pair, y, lipschitz=0.5, tol=1e-8, solver=FixedPoint(steps // 2))


def test_values_that_are_not_finite_raise():
    g, _ = contraction(0.5)
    y = torch.randn(5, 6)
    y[2, 3] = torch.nan
    with pytest.raises(InversionError, match="not finite"):
        invert(g, y, lipschitz=0.5)
    with pytest.raises(InversionError, match="not finite"):
        invert(lambda x, i: (x * torch.nan, x[:, 0]), torch.ones(2, 3), lipschitz=0.5, tol=1)


def test_an_empty_batch_has_an_empty_solution():
    g, _ = contraction(0.5)
    assert invert(g, torch.zeros(0, 6), lipschitz=0.5).value.shape == (0, 6)
    pair = in_two_types(g)
    solution = solve(pair, torch.zeros(0, 6), lipschitz=0.5, tol=1e-3, solver=FixedPoint())
    assert solution.value.shape == (0, 6)


def test_fixed_point_needs_a_step():
    with pytest.raises(ValueError, match="at least 1"):
        FixedPoint(0)
