import pytest
import torch
from helpers import (
    CLOSED,
    MatrixLinearization,
    branch_shape,
    contractions,
    dense_jacobian,
    small_branch,
    small_vector_flow,
)

from iresflow import Exact, NotContractiveError, PowerSeries, RandomSeries
from iresflow.linearization import FunctionLinearization
from iresflow.logdet import TRAINING, lengths, series
from iresflow.streams import PartialStream


@pytest.fixture(params=["conv", "dense"])
def branch_case(request):
    """A branch, points, their Jacobians and exact log-determinants."""
    branch = small_branch(request.param)
    x = torch.randn(3, *branch_shape(request.param))
    jacobian = dense_jacobian(branch, x)
    identity = torch.eye(jacobian.shape[-1])
    return branch, x, jacobian, torch.linalg.slogdet(identity + jacobian).logabsdet


def truncated(jacobian, terms):
    """The exact power series with so many terms."""
    power, total = torch.eye(jacobian.shape[-1]), 0
    for k in range(1, terms + 1):
        power = power @ jacobian
        total = total + (-1) ** (k + 1) / k * power.diagonal(dim1=-2, dim2=-1).sum(-1)
    return total


def within_four_standard_errors(estimate, target):
    return bool(((estimate.value - target).abs() <= 4 * estimate.variance.sqrt()).all())


def test_exact_agrees_with_the_dense_determinant(branch_case):
    branch, x, _, log_det = branch_case
    estimate = Exact()(branch.linearize(x))
    torch.testing.assert_close(estimate.value, log_det, rtol=CLOSED, atol=CLOSED)


def test_exact_gradient_agrees_with_autograd_through_the_determinant(branch_case):
    branch, x, *_ = branch_case
    weights = torch.rand(3)
    parameters = list(branch.parameters())

    def dense(y):
        identity = torch.eye(y[0].numel())
        rows = torch.func.vmap(
            lambda one: torch.func.jacrev(lambda t: branch(t[None])[0].flatten())(one)
        )(y).flatten(2)
        return torch.linalg.slogdet(identity + rows).logabsdet

    expected = torch.autograd.grad((dense(x) * weights).sum(), parameters, allow_unused=True)
    surrogate = Exact()(branch.linearize(x)).surrogate
    ours = torch.autograd.grad((surrogate * weights).sum(), parameters, allow_unused=True)
    for a, b in zip(ours, expected, strict=True):
        if b is None:  # the last bias moves g and not its Jacobian
            assert a is None or bool((a == 0).all())
        else:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_exact_refuses_dimensions_above_its_limit():
    branch = small_branch("dense")
    with pytest.raises(ValueError, match=r"5 dimensions needs 0\.00038 MiB"):
        Exact(limit=4)(branch.linearize(torch.randn(2, 5)))
    large = FunctionLinearization(lambda y: y, torch.zeros(2, 20_000))
    with pytest.raises(ValueError, match=r"20000 dimensions needs 6\.0 GiB"):
        Exact()(large)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("terms", [1, 2, 5])
def test_series_estimates_its_own_truncation(branch_case, distribution, terms):
    branch, x, jacobian, _ = branch_case
    estimator = PowerSeries(terms, probes=2000, probe=distribution)
    estimate = estimator(branch.linearize(x), torch.Generator().manual_seed(1))
    assert within_four_standard_errors(estimate, truncated(jacobian, terms))
    # A control that must fail: the same numbers with a bias of a tenth of a nat.
    assert not within_four_standard_errors(estimate, truncated(jacobian, terms) + 0.1)


def test_long_series_estimates_the_log_determinant(branch_case):
    branch, x, _, log_det = branch_case
    estimate = PowerSeries(60, probes=500)(branch.linearize(x), torch.Generator().manual_seed(1))
    assert within_four_standard_errors(estimate, log_det)


@pytest.mark.parametrize("terms", [1, 3, 8])
def test_truncation_bound_holds_for_every_probe(branch_case, terms):
    branch, x, *_ = branch_case
    for seed in range(10):
        short = PowerSeries(terms)(branch.linearize(x), torch.Generator().manual_seed(seed))
        long = PowerSeries(120)(branch.linearize(x), torch.Generator().manual_seed(seed))
        error = (short.value - long.value).abs()
        assert bool((error <= short.truncation + 1e-12).all())


def test_branches_that_are_no_contraction_have_no_estimate(branch_case):
    branch, x, *_ = branch_case
    for estimator in (PowerSeries(3), Exact()):
        linearization = FunctionLinearization(branch, x, lipschitz=1.0)
        with pytest.raises(NotContractiveError, match="not below 1"):
            estimator(linearization)
        with pytest.raises(NotContractiveError, match="NaN or infinity"):
            estimator(FunctionLinearization(branch, x, lipschitz=float("inf")))
        # Where no bound is known, the products themselves give an expansion away.
        expansion = estimator(FunctionLinearization(lambda y: -1.5 * y, x))
        if isinstance(estimator, PowerSeries) or x[0].numel() % 2:
            assert expansion.value.isnan().all()


def test_training_knows_no_truncation_bound(branch_case):
    branch, x, *_ = branch_case
    assert PowerSeries(3)(branch.train().linearize(x)).truncation.isinf().all()


def test_tolerance_stops_early_and_says_where(branch_case):
    branch, x, _, _ = branch_case
    estimate = PowerSeries(500, tol=1e-4)(branch.linearize(x))
    assert bool((1 < estimate.products).all() and (estimate.products < 60).all())


def test_surrogate_gradient_is_that_of_the_series(branch_case):
    """The mean gradient over many probes against the gradient of the exact truncated series."""
    branch, x, *_ = branch_case
    parameter = branch.layers[1].weight
    terms, probes, rounds = 4, 400, 10

    def series(y):
        jacobian = torch.func.vmap(
            lambda one: torch.func.jacrev(lambda t: branch(t[None])[0].flatten())(one)
        )(y).flatten(2)
        return truncated(jacobian, terms)

    weights = torch.tensor([1.0, 0.5, 3.0])
    (exact,) = torch.autograd.grad((series(x) * weights).sum(), parameter)
    draws = []
    for seed in range(rounds):
        estimator = PowerSeries(terms, probes=probes)
        estimate = estimator(branch.linearize(x), torch.Generator().manual_seed(seed))
        draws.append(torch.autograd.grad((estimate.surrogate * weights).sum(), parameter)[0])
    # Along fixed random directions, since 4 standard errors hold for few numbers, not for all.
    directions = torch.randn(5, *parameter.shape)
    projected = torch.stack([(directions * g).flatten(1).sum(1) for g in draws])
    error = (projected.mean(0) - (directions * exact).flatten(1).sum(1)).abs()
    # In few dimensions so many probes give the exact trace: rounding is left.
    allowed = 4 * projected.std(0) / rounds**0.5 + 1e-10
    assert bool((error <= allowed).all())
    biased = (1.5 * projected.mean(0) - (directions * exact).flatten(1).sum(1)).abs()
    assert not bool((biased <= allowed).all())


def test_log_det_has_the_value_of_the_estimate_and_the_gradient_of_the_surrogate(branch_case):
    branch, x, *_ = branch_case
    x.requires_grad_()
    estimate = PowerSeries(5)(branch.linearize(x), torch.Generator().manual_seed(0))
    assert torch.equal(estimate.log_det.detach(), estimate.value)
    assert not torch.allclose(estimate.surrogate.detach(), estimate.value)
    (a,) = torch.autograd.grad(estimate.log_det.sum(), x, retain_graph=True)
    (b,) = torch.autograd.grad(estimate.surrogate.sum(), x)
    assert torch.equal(a, b)


def test_one_probe_has_no_standard_error(branch_case):
    branch, x, *_ = branch_case
    assert bool(PowerSeries(3)(branch.linearize(x)).variance.isnan().all())


@pytest.mark.parametrize(
    "settings", [{"terms": 0}, {"probes": 0}, {"probe": "cauchy"}, {"tol": -1.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        PowerSeries(**settings)


def test_exact_and_random_series_claim_nothing_of_an_expansion():
    diagonal = torch.full((2, 20), 0.1)
    diagonal[0, 0] = 3.0  # the determinant is positive, and the map no contraction
    diagonal[1, :2] = -2.0
    linearization = MatrixLinearization(torch.diag_embed(diagonal))
    assert Exact()(linearization).value.isnan().all()
    estimate = RandomSeries(probes=2)(linearization)
    assert estimate.truncation.isinf().all() and estimate.gradient_truncation.isinf().all()


def test_a_sample_stops_by_itself_and_never_by_its_batch():
    matrices = contractions(0.9, batch=6, dim=12)
    matrices *= torch.tensor([0.02, 0.2, 0.5, 0.8, 1.0, 0.1])[:, None, None]
    estimator = PowerSeries(200, tol=1e-6)
    together = estimator(MatrixLinearization(matrices, 0.95), torch.Generator().manual_seed(3))
    assert len(together.products.unique()) >= 4
    for sample in range(6):
        stream = PartialStream(torch.Generator().manual_seed(3), whole=6, first=sample)
        alone = estimator(MatrixLinearization(matrices[sample : sample + 1], 0.95), stream)
        for name in ("value", "surrogate", "truncation", "gradient_truncation", "products"):
            a, b = getattr(alone, name)[0], getattr(together, name)[sample]
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=name)
    long = PowerSeries(2000)(MatrixLinearization(matrices), torch.Generator().manual_seed(3))
    assert bool(((together.value - long.value).abs() <= together.truncation + 1e-12).all())


def test_without_a_tolerance_all_terms_are_taken():
    estimate = PowerSeries(7)(MatrixLinearization(contractions(1e-3), 0.5))
    assert bool((estimate.products == 7).all())


@pytest.mark.parametrize("estimator", [PowerSeries(2000, tol=1e-3), TRAINING])
@pytest.mark.parametrize("lowest", [-0.5, -0.9, -0.97])
def test_a_tolerance_is_one_of_what_is_left_out(estimator, lowest):
    """With eigenvalues near -1, which training seeks, all terms of the series have one sign."""
    vectors = torch.linalg.qr(torch.randn(5, 64, 64)).Q
    linear = MatrixLinearization(vectors @ torch.linspace(lowest, 0.2, 64).diag() @ vectors.mT)

    def value(estimator):
        return estimator(linear, torch.Generator().manual_seed(1)).value

    exact, limit = value(PowerSeries(2000)), 1e-3 * 64
    assert float((value(estimator) - exact).abs().max()) <= limit
    # A control: the series that ends with its first term below the tolerance.
    sums = [value(PowerSeries(n)) for n in range(1, 60)]
    last = next(i for i in range(1, 59) if float((sums[i] - sums[i - 1]).abs().max()) < limit)
    assert float((sums[last] - exact).abs().max()) > limit or lowest == -0.5


@pytest.mark.parametrize("estimator", [RandomSeries(), PowerSeries(20, tol=1e-3)])
def test_constants_that_inference_mode_asked_for_first_serve_gradients(estimator):
    for kept in (lengths._rising, lengths._tails, series._table):
        kept.cache_clear()
    flow = small_vector_flow(5).eval()
    x = torch.randn(3, 5)
    with torch.inference_mode():
        flow.likelihood(x, log_det=estimator)
    for mode in (False, True):
        flow.train(mode).log_prob(x, log_det=estimator).sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
