import pytest
import torch
from helpers import branch_shape, small_branch

from iresflow.linearization import FunctionLinearization
from iresflow.logdet import (
    Exact,
    Krylov,
    PowerSeries,
    RandomSeries,
    ReducedPrecision,
    estimator_from_dict,
    estimator_to_dict,
)


def estimate(estimator, kind="conv", function=False):
    torch.manual_seed(0)
    branch = small_branch(kind, "lipswish", 0)
    x = torch.randn(4, *branch_shape(kind), generator=torch.Generator().manual_seed(1))
    linearization = FunctionLinearization(branch, x) if function else branch.linearize(x)
    result = estimator(linearization, torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad(
        result.surrogate.sum(), list(branch.parameters()), materialize_grads=True
    )
    return result, torch.cat([g.flatten() for g in gradient])


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("estimator", [PowerSeries(6), RandomSeries()])
def test_a_narrow_type_changes_value_and_gradient_by_its_rounding(estimator, function):
    wide, expected = estimate(estimator, function=function)
    narrow, gradient = estimate(ReducedPrecision(estimator), function=function)
    assert narrow.value.dtype == wide.value.dtype
    error = (gradient - expected).norm() / expected.norm()
    # A rounding of 2^-9 in each of few products; none at all would mean that nothing was narrow.
    assert 1e-7 < error < 2e-2
    assert (narrow.value - wide.value).abs().max() < 2e-2 * wide.value.abs().max() + 1e-2


def test_nothing_is_proven_from_narrow_products():
    branch = small_branch("dense", "elu", 0).eval()
    linearization = branch.linearize(torch.randn(3, *branch_shape("dense")))
    assert PowerSeries(4)(linearization).truncation.isfinite().all()
    assert ReducedPrecision(PowerSeries(4))(linearization).truncation.isinf().all()


def test_what_it_is_not_for_is_refused():
    for wrong in (Krylov(4), Exact(), ReducedPrecision(PowerSeries(3))):
        with pytest.raises(ValueError, match=type(wrong).__name__):
            ReducedPrecision(wrong)
    with pytest.raises(ValueError, match="int8"):
        ReducedPrecision(PowerSeries(3), torch.int8)


def test_an_orthogonal_branch_is_not_taken_for_an_expansion():
    weight = torch.linalg.qr(torch.randn(branch_shape("dense")[0], branch_shape("dense")[0]))[0]
    linearization = FunctionLinearization(
        lambda x: 0.9995 * x @ weight.T, torch.randn(200, len(weight))
    )
    assert ReducedPrecision(PowerSeries(6))(linearization).value.isfinite().all()


def test_it_is_stored_with_its_estimator():
    estimator = ReducedPrecision(RandomSeries(exact_terms=3))
    assert estimator_from_dict(estimator_to_dict(estimator)) == estimator
