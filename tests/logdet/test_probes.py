"""Probes of few dimensions, and the degrees of freedom that estimators state."""

import itertools
import math

import pytest
import torch
from helpers import (
    MatrixLinearization,
    branch_shape,
    contractions,
    small_branch,
    symmetric_branch,
)

from iresflow.bijections import ResidualBlock
from iresflow.logdet import (
    Exact,
    ExactValue,
    ExactWhereSmall,
    Krylov,
    Lanczos,
    PowerSeries,
    RandomSeries,
    estimator_from_dict,
    estimator_to_dict,
)
from iresflow.logdet.distinct import FEW, distinct_signs
from iresflow.logdet.probes import draw_probes, orthogonal
from iresflow.tensors import rademacher


def lines(probes):
    """The probes of each sample up to their sign, ``(K, B)`` sets of tuples."""
    unsigned = probes * probes[..., -1:]
    return [[tuple(v.tolist()) for v in sample] for sample in unsigned.movedim(1, 0)]


@pytest.mark.parametrize("dim", [1, 2, 3, 6, FEW])
def test_few_dimensions_have_all_patterns_before_any_comes_again(dim):
    patterns = 2 ** (dim - 1)
    probes = distinct_signs(2 * patterns + 1, torch.zeros(30, dim), None)
    assert bool((probes.abs() == 1).all())
    for sample in lines(probes):
        assert len(set(sample[:patterns])) == len(set(sample[patterns : 2 * patterns])) == patterns
    # The control: independent probes are equal now and then.
    if 1 < dim < FEW:
        control = lines(rademacher(patterns, torch.zeros(30, dim)))
        assert any(len(set(sample)) < patterns for sample in control)


def test_each_probe_has_the_identity_as_its_covariance():
    probes = distinct_signs(2, torch.zeros(40_000, 4), torch.Generator().manual_seed(0))
    for v in probes:
        covariance = v.T @ v / len(v)
        assert float((covariance - torch.eye(4)).abs().max()) < 4 / len(v) ** 0.5


def test_traces_by_distinct_probes_are_unbiased_and_their_spread_covers_the_error():
    matrix = torch.randn(5, 5)
    for count in (2, 3, 16):
        v = distinct_signs(count, torch.zeros(20_000, 5), torch.Generator().manual_seed(1))
        values = torch.einsum("kbi,ij,kbj->kb", v, matrix, v)
        error = values.mean(0) - matrix.trace()
        assert abs(float(error.mean())) <= 4 * float(error.std()) / len(error) ** 0.5 + 1e-12
        # Sampling without replacement: (1 - K / N) times the variance of independent draws.
        claimed = float((values.var(0) / count).mean())
        expected = claimed * (1 - count / 16)
        assert float(error.square().mean()) == pytest.approx(expected, rel=0.05, abs=1e-12)


def test_probes_are_drawn_so_in_few_dimensions_only():
    for dim, repeated in ((FEW, False), (FEW + 1, True)):
        probes = draw_probes("rademacher", 2 ** (FEW - 1), torch.zeros(20, dim), None)
        assert any(len(set(s)) < len(s) for s in lines(probes)) == repeated


def test_no_estimate_in_two_dimensions_claims_to_be_exact_and_is_not():
    """Two equal probes have no spread. Every pair of patterns, by every stream of 200 samples."""
    matrices = contractions(0.8, batch=200, dim=2)
    exact = torch.linalg.slogdet(torch.eye(2) + matrices).logabsdet
    for estimator in (Krylov(probes=2), Lanczos(probes=2), PowerSeries(60, probes=2)):
        estimate = estimator(MatrixLinearization(matrices, 0.81), torch.Generator().manual_seed(0))
        wrong = (estimate.value - exact).abs() > estimate.truncation + 1e-9
        assert not bool((wrong & (estimate.variance == 0)).any())
    control = rademacher(2, torch.zeros(200, 2), torch.Generator().manual_seed(0))
    assert bool((control.prod(-1)[0] == control.prod(-1)[1]).any())


@pytest.mark.parametrize("probes", [1, 2, 5])
def test_degrees_of_freedom(probes):
    linearization = MatrixLinearization(contractions(0.5), 0.51)
    for cls in (Krylov, Lanczos, PowerSeries, RandomSeries):
        assert cls(probes=probes)(linearization).degrees == probes - 1
    assert Exact()(linearization).degrees == math.inf


def test_small_is_exact_and_the_rest_as_told():
    otherwise = PowerSeries(3, probes=2)
    matrices = contractions(0.5, dim=12).requires_grad_()
    linearization = MatrixLinearization(matrices, 0.51)
    exact, probed, estimate = (
        e(linearization, torch.Generator().manual_seed(0))
        for e in (Exact(), ExactValue(), otherwise)
    )
    for limits, value, gradient in (
        ((12, 0), exact, exact),
        ((11, 12), probed, probed),
        ((11, 11), estimate, estimate),
    ):
        ours = ExactWhereSmall(otherwise, *limits)(linearization, torch.Generator().manual_seed(0))
        for name in ("value", "variance", "truncation"):
            assert torch.equal(getattr(ours, name), getattr(value, name))
        assert torch.equal(ours.gradient_truncation, gradient.gradient_truncation)
        of_ours, of_theirs = (
            torch.autograd.grad(e.log_det.sum(), matrices, retain_graph=True)[0]
            for e in (ours, gradient)
        )
        assert torch.equal(of_ours, of_theirs)
        with torch.no_grad():  # the value is the same, and costs no gradient
            bare = ExactWhereSmall(otherwise, *limits)(
                linearization, torch.Generator().manual_seed(0)
            )
        assert torch.allclose(bare.value, value.value, rtol=1e-12)
    torch.testing.assert_close(probed.value, exact.value)
    assert float((exact.value - estimate.value).abs().max()) > 1e-3
    for limits in ((-1, 64), (32, -1)):
        with pytest.raises(ValueError, match="must be 0 or more, got -1"):
            ExactWhereSmall(otherwise, *limits)


def test_gradients_of_exact_values_are_unbiased():
    """Over 4,000 probes; the control leaves out the inverse."""
    matrices = contractions(0.9, batch=1, dim=6).requires_grad_()
    linearization = MatrixLinearization(matrices.expand(4000, 6, 6), 0.95)
    found = ExactValue(1)(linearization, torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(found.surrogate.sum() / 4000, matrices)
    expected = torch.linalg.inv(torch.eye(6) + matrices.detach()).mT
    weights = expected @ expected.mT  # an entry of w v^T has at most the variance of w
    error = (weights.diagonal(dim1=1, dim2=2).amax() / 4000).sqrt()
    assert float((gradient - expected).abs().max()) < 4.5 * float(error)
    assert float((gradient - torch.eye(6)).abs().max()) > 9 * float(error)
    assert float(found.gradient_truncation.max()) == 0


def test_exact_values_of_what_is_no_contraction_are_not_a_number():
    """Negative, singular, expanding, NaN, and a map whose factors need rows swapped."""
    swap = torch.tensor([[-1.0, 0.9], [-0.9, -1.0]])
    cases = [torch.diag(torch.tensor([-1.9, 0.5])), torch.diag(torch.tensor([-1.0, 0.5]))]
    cases += [torch.diag(torch.tensor([2.0, 2.0])), torch.full((2, 2), torch.nan), 0.7 * swap]
    linearization = MatrixLinearization(torch.stack(cases).requires_grad_())
    for estimator in (Exact(), ExactValue()):
        value = estimator(linearization).value
        assert value.isnan().tolist() == [True, True, True, True, False]
        expected = torch.linalg.slogdet(torch.eye(2) + 0.7 * swap)[1]
        torch.testing.assert_close(value[-1], expected)


def test_estimators_within_others_are_stored():
    for inner, limit in itertools.product((Krylov(probes=3), PowerSeries(7)), (0, 9)):
        for estimator in (ExactWhereSmall(inner, limit, 2 * limit), ExactValue(3, "gaussian")):
            assert estimator_from_dict(estimator_to_dict(estimator)) == estimator
    old = {"name": "exact-where-small", "otherwise": {"name": "krylov"}, "limit": 16}
    assert estimator_from_dict(old) == ExactWhereSmall(Krylov(), 16)


@pytest.mark.parametrize("count", [1, 3, 6, 8])
def test_orthogonal_probes_are_a_basis_of_their_norm_and_begin_anew(count):
    probes = draw_probes("orthogonal", count, torch.zeros(5, 2, 3, 1), None)
    assert probes.shape == (count, 5, 2, 3, 1)
    first = probes[:6].flatten(2)
    products = torch.einsum("kbi,lbi->bkl", first, first)
    torch.testing.assert_close(products, 6 * torch.eye(min(count, 6)).expand(5, -1, -1))
    if count > 6:
        assert float((probes[6] - probes[0]).abs().min()) > 1e-6


def test_traces_by_orthogonal_probes_have_the_variance_that_is_stated():
    matrix, dim = torch.randn(6, 6), 6
    for count in (2, 4, 6):
        v = orthogonal(count, torch.zeros(30_000, dim), torch.Generator().manual_seed(1))
        covariance = torch.einsum("bi,bj->ij", v[-1], v[-1]) / v.shape[1]
        assert float((covariance - torch.eye(dim)).abs().max()) < 5 * 2 / v.shape[1] ** 0.5
        values = torch.einsum("kbi,ij,kbj->kb", v, matrix, v)
        error = values.mean(0) - matrix.trace()
        assert abs(float(error.mean())) <= 4 * float(error.std()) / len(error) ** 0.5 + 1e-12
        independent = float(values[0].var()) / count
        stated = independent * (1 - (count - 1) / (dim - 1))
        assert float(error.var()) == pytest.approx(stated, rel=0.05, abs=1e-12)
        assert float((values.var(0) / count).mean()) >= 0.95 * stated
        if count > 2:  # the control
            assert float(error.var()) < 0.8 * independent


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_estimates_of_an_empty_batch_are_empty(kind):
    estimators = [Exact(), Krylov(), Lanczos(), PowerSeries(3, tol=1e-3), RandomSeries()]
    for estimator in [*estimators, PowerSeries(3, probe="orthogonal")]:
        branch = symmetric_branch(kind) if isinstance(estimator, Lanczos) else small_branch(kind)
        x = torch.zeros(0, *branch_shape(kind))
        assert ResidualBlock(branch, estimator)(x)[1].shape == (0,)
