"""The descent against closed forms, and how it ends."""

import pytest
import torch
from scipy.optimize import lsq_linear

from iresflow.inverse_problems.descent import Evaluation, ProjectedGradient

ONE = torch.ones(())


def evaluation(value, gradient):
    return Evaluation(value, gradient, value.abs(), gradient.norm(dim=1))


def quadratic(matrix, right):
    """``|A x - b|^2 / 2`` for each of the samples' right sides ``(B, M)``."""

    def function(x, index):
        residual = x @ matrix.mT - right[index]
        return evaluation(residual.square().sum(1) / 2, residual @ matrix)

    return function


def free(x):
    return x


def unit_box(x):
    return x.clamp(0, 1)


def test_a_quadratic_in_a_box_has_the_minimum_that_scipy_finds():
    matrix, right = torch.randn(12, 8), 3 * torch.randn(4, 12)
    found = ProjectedGradient(1e-10).minimize(
        quadratic(matrix, right), torch.full((4, 8), 0.5), unit_box
    )
    assert bool(found.converged.all())
    for point, b in zip(found.point, right, strict=True):
        expected = lsq_linear(matrix.numpy(), b.numpy(), (0, 1), tol=1e-14).x
        torch.testing.assert_close(point, torch.from_numpy(expected), rtol=0, atol=1e-7)
    held = (found.point == 0) | (found.point == 1)
    assert bool(held.any()) and not bool(held.all())


def test_samples_do_not_depend_on_each_other():
    matrix, right = torch.randn(12, 8), torch.randn(3, 12)
    start = torch.zeros(3, 8)
    together = ProjectedGradient(1e-9).minimize(quadratic(matrix, right), start, free)
    for row in range(3):
        alone = ProjectedGradient(1e-9).minimize(
            quadratic(matrix, right[row : row + 1]), start[:1], free
        )
        torch.testing.assert_close(alone.point[0], together.point[row], rtol=0, atol=1e-7)


@pytest.mark.parametrize("wall", [torch.inf, torch.nan])
def test_no_step_is_taken_to_where_the_value_is_not_finite(wall):
    visited = []

    def barrier(x, index):
        # -log(1 - x) + 10 (x - 2)^2 / 2 of x below 1, and nothing beyond.
        inside = x < 1
        gap = torch.where(inside, 1 - x, ONE)
        value = torch.where(inside, -gap.log() + 5 * (x - 2) ** 2, wall)
        return evaluation(value[:, 0], torch.where(inside, 1 / gap + 10 * (x - 2), wall))

    class Watching(torch.nn.Module):
        def forward(self, x, index):
            found = barrier(x, index)
            visited.append(bool(found.value.isfinite().all()))
            return found

    found = ProjectedGradient(1e-9).minimize(Watching(), torch.tensor([[-3.0]]), free)
    # (1 - x)(2 - x) = 1 / 10
    expected = (3 - 1.4**0.5) / 2
    assert bool(found.converged) and float(found.point) == pytest.approx(expected)
    assert not all(visited)


def test_a_start_without_a_value_is_refused():
    def nowhere(x, index):
        return evaluation(x[:, 0].log(), 1 / x)

    with pytest.raises(ValueError, match="sample 1 has no finite value"):
        ProjectedGradient().minimize(nowhere, torch.tensor([[1.0], [0.0]]), free)


def test_what_has_not_converged_says_so():
    matrix = torch.diag(torch.logspace(0, 4, 8))
    function = quadratic(matrix, torch.randn(2, 8))
    few = ProjectedGradient(1e-12, iterations=3).minimize(function, torch.ones(2, 8), free)
    assert few.iterations.tolist() == [3, 3]
    assert not bool(few.converged.any()) and bool((few.criterion > 1e-12).all())
    assert bool((few.evaluations >= 4).all())


def test_a_minimum_at_the_start_is_found_at_once():
    function = quadratic(torch.eye(3), torch.ones(2, 3))
    found = ProjectedGradient().minimize(function, torch.ones(2, 3), free)
    assert bool(found.converged.all()) and found.iterations.tolist() == [0, 0]
    # Where all that is left points out of the box, too.
    found = ProjectedGradient().minimize(
        quadratic(torch.eye(3), 2 * torch.ones(2, 3)), torch.ones(2, 3), unit_box
    )
    assert bool(found.converged.all()) and found.iterations.tolist() == [0, 0]


def test_a_gradient_that_leads_up_stalls():
    def wrong(x, index):
        return evaluation(x.square().sum(1), -2 * x)

    found = ProjectedGradient(iterations=20).minimize(wrong, torch.ones(1, 2), free)
    assert not bool(found.converged)
    assert torch.equal(found.point, torch.ones(1, 2))


def test_a_valley_that_curves_is_followed():
    def rosenbrock(x, index):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return evaluation(value.detach(), gradient)

    start = torch.tensor([[-1.2, 1.0], [2.0, -2.0]])
    found = ProjectedGradient(1e-7).minimize(rosenbrock, start, free)
    torch.testing.assert_close(found.point, torch.ones(2, 2), rtol=0, atol=1e-3)
