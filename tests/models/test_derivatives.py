"""Derivatives of any order are right, or refused by one clear error."""

import pytest
import torch
from helpers import random_context, small_image_flow, small_vector_flow

from iresflow import (
    DerivativeError,
    Exact,
    Krylov,
    Lanczos,
    PowerSeries,
    RandomSeries,
    compile_kernels,
)

STEP = 1e-5


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def differences(function, x):
    """Central differences ``(n, ...)`` of a function of a vector ``(n,)``."""
    basis = STEP * torch.eye(len(x))
    with torch.no_grad():
        rows = [(function(x + e) - function(x - e)) / (2 * STEP) for e in basis]
    return torch.stack(rows)


def gradients_by_differences(function, x):
    return differences(lambda y: torch.enable_grad()(gradient)(function, y), x)


@pytest.fixture
def flow():
    return small_vector_flow(3, blocks=2, context_dim=2)


FUNCTIONS = {
    "log_prob": lambda flow, c: lambda v: flow.log_prob(v[None], c)[0],
    "transform": lambda flow, c: lambda v: flow.transform(v[None], c).pow(3).sum(),
    "inverse": lambda flow, c: lambda v: flow.inverse(v[None], c, tol=1e-13).pow(3).sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::iresflow.InversionWarning")
def test_second_and_third_derivatives_in_the_point(flow, name):
    function = FUNCTIONS[name](flow, random_context(flow, 1))
    x = torch.randn(3)
    hessian = torch.autograd.functional.hessian(function, x)
    torch.testing.assert_close(
        hessian, gradients_by_differences(function, x), rtol=1e-6, atol=1e-7
    )

    def third(y):
        return torch.autograd.functional.hessian(function, y, create_graph=True).square().sum()

    torch.testing.assert_close(gradient(third, x), differences(third, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::iresflow.InversionWarning")
def test_mixed_derivatives_of_a_gradient_penalty(flow, name):
    """Through the point into every parameter, by either call."""
    context, x = random_context(flow, 1), torch.randn(3)
    function = FUNCTIONS[name](flow, context)
    parameters = {n: p for n, p in flow.named_parameters() if n.endswith(("weight", "bias"))}

    def penalty():
        y = x.clone().requires_grad_()
        return torch.autograd.grad(function(y), y, create_graph=True)[0].square().sum()

    found = torch.autograd.grad(penalty(), parameters.values(), allow_unused=True)
    penalty().backward()
    for (parameter_name, parameter), ours in zip(parameters.items(), found, strict=True):
        entry = parameter.detach().view(-1)
        before = float(entry[0])
        values = []
        for step in (STEP, -STEP):
            entry[0] = before + step
            values.append(float(penalty().detach()))
        entry[0] = before
        expected = (values[0] - values[1]) / (2 * STEP)
        for gradient_of_it in (ours, parameter.grad):
            got = 0.0 if gradient_of_it is None else float(gradient_of_it.view(-1)[0])
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-6), parameter_name


@pytest.mark.filterwarnings("ignore::iresflow.InversionWarning")
def test_second_derivatives_of_an_inverse_in_the_parameters(flow):
    """Both times in the same parameter, whose place in the gradient depends on the solution."""
    bias = flow.bijection.maps[1].branch.layers[0].bias
    z, context = torch.randn(2, 3), random_context(flow, 2)

    def slope(create_graph):
        value = flow.inverse(z, context, tol=1e-13).pow(3).sum()
        return torch.autograd.grad(value, bias, create_graph=create_graph)[0]

    found = torch.autograd.grad(slope(True)[0], bias)[0]
    values = []
    for step in (STEP, -STEP):
        bias.detach()[1] += step
        values.append(float(slope(False)[0]))
        bias.detach()[1] -= step
    assert float(found[1]) == pytest.approx((values[0] - values[1]) / (2 * STEP), rel=1e-5)


@pytest.mark.parametrize(
    "estimator",
    [Krylov(), Lanczos(), PowerSeries(10), RandomSeries()],
    ids=lambda e: type(e).__name__,
)
def test_derivatives_of_estimated_gradients_are_refused_by_every_call(estimator):
    flow = small_image_flow()
    x = torch.rand(2, 2, 4, 4, requires_grad=True)

    def score():
        value = flow.log_prob(x, log_det=estimator).sum()
        return torch.autograd.grad(value, x, create_graph=True)[0]

    with pytest.raises(DerivativeError, match=r"Exact\(\)"):
        score()
    with pytest.raises(DerivativeError):
        flow.log_prob(x, log_det=estimator).sum().backward(create_graph=True)
    with pytest.raises(DerivativeError):
        torch.autograd.functional.hvp(
            lambda y: flow.log_prob(y, log_det=estimator).sum(), x, torch.ones_like(x)
        )
    gradients = torch.autograd.grad(flow.log_prob(x, log_det=estimator).sum(), x)  # once is right
    assert bool(gradients[0].isfinite().all())


def test_exact_log_determinants_have_the_derivatives_that_are_refused_of_others():
    flow, x = small_image_flow(blocks=(1, 0)), torch.rand(2, 2, 4, 4)
    right = torch.autograd.functional.hvp(
        lambda y: flow.log_prob(y, log_det=Exact()).sum(), x, torch.ones_like(x)
    )
    assert bool(right[1].isfinite().all())


def test_transforms_of_torch_func_work_with_exact_log_determinants():
    flow = small_vector_flow(3)
    x, v = torch.randn(2, 4, 3)

    def log_prob(row):
        return flow.log_prob(row[None])[0]

    each = torch.stack([gradient(log_prob, row) for row in x])
    hessians = torch.stack([torch.autograd.functional.hessian(log_prob, row) for row in x])
    tangent = (each * v).sum(1)
    by_row = torch.func.vmap(log_prob)(x)
    torch.testing.assert_close(by_row, flow.log_prob(x))
    torch.testing.assert_close(torch.func.grad(log_prob)(x[0]), each[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(log_prob))(x), each)
    torch.testing.assert_close(torch.func.hessian(log_prob)(x[0]), hessians[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.hessian(log_prob))(x), hessians)
    torch.testing.assert_close(torch.func.vmap(torch.func.jacfwd(log_prob))(x), each)
    torch.testing.assert_close(torch.func.jvp(flow.log_prob, (x,), (v,))[1], tangent)


def test_gradients_of_each_sample_in_the_parameters():
    flow = small_vector_flow(3)
    x, parameters = torch.randn(4, 3), dict(flow.named_parameters())

    def loss(values, row):
        return torch.func.functional_call(flow, values, (row[None],))[1][0]

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, row in enumerate(x):
        _, log_det = flow(row[None])
        expected = torch.autograd.grad(log_det[0], parameters.values(), allow_unused=True)
        for name, gradient_of_one in zip(parameters, expected, strict=True):
            wanted = 0 if gradient_of_one is None else gradient_of_one
            torch.testing.assert_close(found[name][i], wanted + torch.zeros_like(parameters[name]))


def test_transforms_of_what_they_cannot_go_through_are_one_clear_error():
    flow, x = small_image_flow(), torch.rand(2, 2, 4, 4)
    with pytest.raises(DerivativeError, match="torch.func"):
        torch.func.grad(lambda y: flow.log_prob(y, log_det=Krylov()).sum())(x)
    with pytest.raises(DerivativeError, match="an inverse is an iteration"):
        torch.func.grad(lambda z: flow.inverse(z).sum())(torch.randn(2, 32))


@pytest.mark.parametrize("native", [False, True])
def test_second_derivatives_through_estimated_norms_are_refused(native):
    compile_kernels(native)
    flow, x = small_vector_flow(3).train(), torch.randn(4, 3, requires_grad=True)
    weight = next(p for p in flow.bijection.parameters() if p.ndim == 2)
    with pytest.raises(DerivativeError, match=r"call eval\(\)"):
        torch.autograd.grad(flow.log_prob(x).sum(), weight, create_graph=True)
    # A gradient penalty differentiates the norms once.
    score = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)[0]
    (found,) = torch.autograd.grad(score.square().sum(), weight)
    assert bool(found.isfinite().all())


def test_blocks_of_few_dimensions_have_derivatives_by_default():
    flow, x = small_vector_flow(9, log_det=PowerSeries()), torch.randn(9)

    def log_prob(row):
        return flow.log_prob(row[None])[0]

    hessian = torch.autograd.functional.hessian(log_prob, x)
    torch.testing.assert_close(
        hessian, gradients_by_differences(log_prob, x), rtol=1e-6, atol=1e-7
    )
