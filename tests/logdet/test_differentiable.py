"""The series whose gradient is that of its own values."""

import pytest
import torch
from helpers import CLOSED, contractions, small_image_flow, small_vector_flow

from iresflow import DerivativeError, DifferentiableSeries, Krylov, PowerSeries
from iresflow.linearization import FunctionLinearization
from iresflow.logdet import estimator_from_dict, estimator_to_dict


@pytest.mark.parametrize("terms", [1, 2, 3, 8])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian", "orthogonal"])
def test_values_and_truncation_bounds_are_those_of_the_power_series(case, terms, probe):
    found, known = (
        kind(terms, 3, probe)(case.linearize(), torch.Generator().manual_seed(1))
        for kind in (DifferentiableSeries, PowerSeries)
    )
    for name in ("value", "variance", "truncation"):
        mine, theirs = getattr(found, name), getattr(known, name)
        torch.testing.assert_close(mine, theirs, rtol=CLOSED, atol=CLOSED)
    assert found.degrees == known.degrees


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_the_gradient_in_a_matrix_is_that_of_the_value(terms):
    matrix = contractions(0.6, batch=2, dim=5).requires_grad_()
    probe = torch.randn(2, 5)

    def series(matrix):
        power, total = probe, 0
        for k in range(1, terms + 1):
            power = torch.einsum("bij,bj->bi", matrix, power)
            total = total + (-1) ** (k + 1) / k * (probe * power).sum(1)
        return total.sum()

    # A map whose slope at the point is the matrix: the estimator sees J alone.
    linearization = FunctionLinearization(
        lambda x: torch.einsum("bij,bj->bi", matrix, x), torch.zeros(2, 5)
    )
    estimator = DifferentiableSeries(terms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iresflow.logdet.differentiable.draw_probes", lambda *_: probe[None])
        estimate = estimator(linearization)
    (found,) = torch.autograd.grad(estimate.surrogate.sum(), matrix)
    (expected,) = torch.autograd.grad(series(matrix), matrix)
    torch.testing.assert_close(estimate.value.sum(), series(matrix.detach()))
    torch.testing.assert_close(found, expected)


def slopes(flow, estimator, x):
    """The derivative of log p in a direction: of the gradient, and by central differences."""
    direction = torch.randn_like(x)
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(flow.log_prob(x, log_det=estimator).sum(), x)
    with torch.no_grad():
        up, down = (
            flow.log_prob(x + step * direction, log_det=estimator) for step in (1e-5, -1e-5)
        )
    return (gradient * direction).flatten(1).sum(1), (up - down) / 2e-5


@pytest.mark.parametrize("block", ["residual", "monotone"])
@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_the_gradient_of_a_log_density_is_that_of_its_values(kind, block):
    if kind == "images":
        flow, x = small_image_flow(block=block), torch.rand(3, 2, 4, 4)
    else:
        flow, x = small_vector_flow(12, block=block), torch.randn(3, 12)
    found, measured = slopes(flow, DifferentiableSeries(6, probes=2), x)
    assert torch.allclose(found, measured, rtol=1e-6, atol=1e-6)
    # The estimators of training have gradients of another function with the same mean.
    found, measured = slopes(flow, Krylov(probes=2), x)
    assert not torch.allclose(found, measured, rtol=1e-6, atol=1e-6)


def test_an_expansion_has_no_value():
    for factor in (-1.5, 1.5):
        linearization = FunctionLinearization(lambda x, a=factor: a * x, torch.zeros(1, 40))
        assert bool(DifferentiableSeries(3)(linearization).value.isnan().all())


def test_derivatives_of_its_gradient_are_refused():
    flow, x = small_vector_flow(12), torch.randn(2, 12, requires_grad=True)
    value = flow.log_prob(x, log_det=DifferentiableSeries(3)).sum()
    with pytest.raises(DerivativeError):
        torch.autograd.grad(value, x, create_graph=True)


def test_it_can_be_stored_and_wrong_settings_are_refused():
    estimator = DifferentiableSeries(7, 2, "gaussian")
    settings = estimator_to_dict(estimator)
    assert settings["name"] == "differentiable-series"
    assert estimator_from_dict(settings) == estimator
    with pytest.raises(ValueError, match="terms must be at least 1"):
        DifferentiableSeries(0)
    with pytest.raises(ValueError, match="unknown distribution"):
        DifferentiableSeries(probe="uniform")
