import pytest
import torch

from iresflow import InversionError, NotContractiveError
from iresflow.solvers import FixedPoint, solve


def contraction(lipschitz, dim=6, batch=5):
    """Sample-wise maps ``tanh`` of a rotation, scaled to a Lipschitz constant of its own."""
    rotation = torch.linalg.qr(torch.randn(dim, dim)).Q
    scales = lipschitz * torch.linspace(0.01, 1, batch)

    def g(x, index):
        value = scales[index, None] * torch.tanh(x @ rotation)
        return value, x.norm(dim=1) + value.norm(dim=1)

    return g, torch.arange(batch)


@pytest.mark.parametrize("lipschitz", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_error_is_below_its_bound_and_the_bound_below_the_tolerance(lipschitz, tol):
    g, index = contraction(lipschitz)
    x = torch.randn(5, 6)
    y = x + g(x, index)[0]
    solution = solve(g, y, lipschitz=lipschitz, tol=tol, solver=FixedPoint(5000))
    error = (solution.value - x).norm(dim=1)
    assert bool((error <= solution.error).all())
    assert bool((solution.error <= tol).all())


def test_finished_samples_cost_nothing():
    g, _ = contraction(0.9)
    evaluated = []

    def counting(x, index):
        evaluated.append(len(index))
        return g(x, index)

    y = torch.randn(5, 6)
    solution = solve(counting, y, lipschitz=0.9, tol=1e-6, solver=FixedPoint())
    assert evaluated == sorted(evaluated, reverse=True)
    assert sum(evaluated) == int(solution.steps.sum())
    assert solution.steps[0] < solution.steps[-1]


@pytest.mark.parametrize("lipschitz", [0.5, 0.95])
def test_float32_bounds_hold_against_float64(lipschitz):
    g, index = contraction(lipschitz, dim=300, batch=40)
    x = 5 * torch.randn(40, 300)
    y = (x + g(x, index)[0]).float()

    def single(x, index):
        value, magnitude = g(x.double(), index)
        return value.float(), magnitude.float()

    exact = solve(g, y.double(), lipschitz=lipschitz, tol=1e-12, solver=FixedPoint(5000)).value
    for tol in (1e-2, 0.0):
        solution = solve(single, y, lipschitz=lipschitz, tol=tol, solver=FixedPoint(5000))
        error = (solution.value.double() - exact).norm(dim=1)
        assert bool((error <= solution.error.double()).all())
    assert float(solution.error.max()) < 5e-3  # tol=0: what float32 allows


@pytest.mark.parametrize("lipschitz", [1.0, 1.5, float("nan"), float("inf")])
def test_expansive_maps_are_refused(lipschitz):
    g, _ = contraction(0.5)
    with pytest.raises(NotContractiveError, match="not below 1"):
        solve(g, torch.randn(5, 6), lipschitz=lipschitz, tol=1e-3, solver=FixedPoint())


def test_too_few_steps_raise_with_numbers():
    g, _ = contraction(0.99)
    with pytest.raises(
        InversionError, match=r"of 5 samples missed the tolerance .* after 3 steps"
    ):
        solve(g, torch.randn(5, 6), lipschitz=0.99, tol=1e-9, solver=FixedPoint(3))


def test_values_that_are_not_finite_raise():
    g, _ = contraction(0.5)
    y = torch.randn(5, 6)
    y[2, 3] = torch.nan
    with pytest.raises(InversionError, match="not finite"):
        solve(g, y, lipschitz=0.5, tol=1e-3, solver=FixedPoint())
    with pytest.raises(InversionError, match="not finite"):
        solve(
            lambda x, i: (x * torch.nan, x[:, 0]),
            torch.ones(2, 3),
            lipschitz=0.5,
            tol=1,
            solver=FixedPoint(),
        )


def test_an_empty_batch_has_an_empty_solution():
    g, _ = contraction(0.5)
    solution = solve(g, torch.zeros(0, 6), lipschitz=0.5, tol=1e-3, solver=FixedPoint())
    assert solution.value.shape == (0, 6)


def test_fixed_point_needs_a_step():
    with pytest.raises(ValueError, match="at least 1"):
        FixedPoint(0)
