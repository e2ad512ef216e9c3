"""The descent against closed forms, and how it ends."""

import pytest
import torch
from scipy.optimize import lsq_linear

from iresflow.inverse_problems.curvature import Curvature
from iresflow.inverse_problems.descent import Evaluation, ProjectedQuasiNewton

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
    found = ProjectedQuasiNewton(1e-10).minimize(
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
    together = ProjectedQuasiNewton(1e-9).minimize(quadratic(matrix, right), start, free)
    for row in range(3):
        alone = ProjectedQuasiNewton(1e-9).minimize(
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

    found = ProjectedQuasiNewton(1e-9).minimize(Watching(), torch.tensor([[-3.0]]), free)
    # (1 - x)(2 - x) = 1 / 10
    expected = (3 - 1.4**0.5) / 2
    assert bool(found.converged) and float(found.point) == pytest.approx(expected)
    assert not all(visited)


def test_a_start_without_a_value_is_refused():
    def nowhere(x, index):
        return evaluation(x[:, 0].log(), 1 / x)

    with pytest.raises(ValueError, match="sample 1 has no finite value"):
        ProjectedQuasiNewton().minimize(nowhere, torch.tensor([[1.0], [0.0]]), free)


def test_what_has_not_converged_says_so():
    matrix = torch.diag(torch.logspace(0, 4, 8))
    function = quadratic(matrix, torch.randn(2, 8))
    few = ProjectedQuasiNewton(1e-12, iterations=3).minimize(function, torch.ones(2, 8), free)
    assert few.iterations.tolist() == [3, 3]
    assert not bool(few.converged.any()) and bool((few.criterion > 1e-12).all())
    assert bool((few.evaluations >= 4).all())


def test_a_minimum_at_the_start_is_found_at_once():
    function = quadratic(torch.eye(3), torch.ones(2, 3))
    found = ProjectedQuasiNewton().minimize(function, torch.ones(2, 3), free)
    assert bool(found.converged.all()) and found.iterations.tolist() == [0, 0]
    # Where all that is left points out of the box, too.
    found = ProjectedQuasiNewton().minimize(
        quadratic(torch.eye(3), 2 * torch.ones(2, 3)), torch.ones(2, 3), unit_box
    )
    assert bool(found.converged.all()) and found.iterations.tolist() == [0, 0]


def test_a_gradient_that_leads_up_stalls():
    def wrong(x, index):
        return evaluation(x.square().sum(1), -2 * x)

    found = ProjectedQuasiNewton(iterations=20).minimize(wrong, torch.ones(1, 2), free)
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
    found = ProjectedQuasiNewton(1e-7).minimize(rosenbrock, start, free)
    torch.testing.assert_close(found.point, torch.ones(2, 2), rtol=0, atol=1e-3)


def test_narrow_valleys_in_a_box_end_at_the_minimum_that_scipy_finds():
    # A condition of 1e4, and minima of which some entries are held by the box.
    basis, scales = torch.linalg.qr(torch.randn(30, 30)).Q, torch.logspace(0, 2, 30)
    matrix = scales[:, None] * basis.mT
    right = scales * (0.5 * basis.mT.sum(1) + 0.4 * torch.randn(2, 30))
    function, start = quadratic(matrix, right), torch.full((2, 30), 0.5)
    found = ProjectedQuasiNewton(1e-6, 800).minimize(function, start, unit_box)
    assert bool(found.converged.all())
    for point, b in zip(found.point, right, strict=True):
        expected = lsq_linear(matrix.numpy(), b.numpy(), (0, 1), tol=1e-15).x
        torch.testing.assert_close(point, torch.from_numpy(expected), rtol=0, atol=1e-4)
    held = (found.point == 0) | (found.point == 1)
    assert 4 <= int(held.sum()) <= 40
    # A control: by the last step alone it is still far away.
    short = ProjectedQuasiNewton(1e-6, 800, memory=1).minimize(function, start, unit_box)
    assert int(short.iterations.sum()) > 1.5 * int(found.iterations.sum())


def test_the_curvature_is_that_of_the_dense_formula():
    count, dim, free = 3, 6, torch.tensor([True, True, False, True, False, True])
    curvature = Curvature(2, torch.zeros(count, dim))
    hessian = torch.randn(dim, dim)
    hessian = hessian @ hessian.mT + torch.eye(dim)
    rows, gradient, past = torch.tensor([0, 2]), torch.randn(2, dim), []
    for _ in range(3):
        steps = torch.randn(2, dim)
        curvature.learn(rows, steps, steps @ hessian)
        past.append((steps[:, free], (steps @ hessian)[:, free]))
    downhill = torch.randn(2, dim)
    curvature.learn(rows, downhill, -downhill)  # curves down: is not kept
    found = curvature.solve(rows, gradient, free.expand(2, dim), torch.ones(2))
    assert bool((found[:, ~free] == 0).all())
    for row in range(2):
        # The last two of the three steps; their curvature among the free entries may be negative.
        known = [(s[row], y[row]) for s, y in past[1:] if float(s[row] @ y[row]) > 0]
        inverse = torch.eye(4) * (known[-1][0] @ known[-1][1] / known[-1][1].square().sum())
        for s, y in known:
            share = torch.eye(4) - torch.outer(s, y) / (s @ y)
            inverse = share @ inverse @ share.mT + torch.outer(s, s) / (s @ y)
        torch.testing.assert_close(found[row, free], inverse @ gradient[row, free])
    # Of a sample that has gone no step, nothing is known.
    plain = curvature.solve(
        torch.tensor([1]), gradient[:1], torch.ones(1, dim) > 0, 3 * torch.ones(1)
    )
    torch.testing.assert_close(plain, 3 * gradient[:1])
