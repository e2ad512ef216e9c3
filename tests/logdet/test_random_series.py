import math

import pytest
import scipy.stats
import torch
from helpers import MatrixLinearization, small_vector_flow

from iresflow import Geometric, Krylov, Lanczos, Poisson, PowerSeries, RandomSeries
from iresflow.logdet import Exact, estimator_from_dict, estimator_to_dict
from iresflow.logdet.probes import squared_standard_error

LENGTHS = [Poisson(2.0), Poisson(0.5), Geometric(0.5)]


@pytest.mark.parametrize("rate", [0.1, 2.0, 30.0])
def test_poisson_survival_is_exact_far_into_the_tail(rate):
    ours = Poisson(rate).survival()
    theirs = scipy.stats.poisson(rate).sf(torch.arange(len(ours)).numpy() - 1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-12, atol=0)
    assert float(ours[-1]) < 1e-13


@pytest.mark.parametrize("lengths", LENGTHS)
def test_draws_have_the_probabilities_that_terms_are_divided_by(lengths):
    count = 100_000
    draws = lengths.draw((count,), torch.Generator().manual_seed(0))
    for k, p in enumerate(lengths.survival()[:6].tolist()):
        share = float((draws >= k).double().mean())
        assert abs(share - p) <= 4 * (p * (1 - p) / count) ** 0.5 + 1e-12


@pytest.mark.parametrize("lengths", LENGTHS)
def test_random_series_is_unbiased(case, lengths):
    estimator = RandomSeries(lengths, exact_terms=1, probes=1000)
    estimate = estimator(case.linearize(), torch.Generator().manual_seed(1))
    error = (estimate.value - case.log_det).abs()
    assert estimate.terms is not None
    assert bool((error <= 4 * squared_standard_error(estimate.terms).sqrt()).all())
    assert bool((estimate.truncation == 0).all())


def test_the_same_terms_without_weights_are_seen_to_be_biased(matrices):
    """The control of the test above: the mean number of terms, and no roulette."""
    linearization = MatrixLinearization(matrices[0].detach(), 0.7)
    log_det = torch.linalg.slogdet(torch.eye(12) + linearization.matrices).logabsdet
    short = PowerSeries(3, probes=60_000)(linearization, torch.Generator().manual_seed(1))
    assert bool(((short.value - log_det).abs() > 4 * short.variance.sqrt()).all())


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_spread_of_random_series_would_not_cover(lengths):
    """So no variance is claimed, of a difference neither."""
    count, probes = 4000, 8
    linearization = MatrixLinearization(-0.9 * torch.eye(6).expand(count, 6, 6), 0.9)
    estimate = RandomSeries(lengths, probes=probes)(
        linearization, torch.Generator().manual_seed(0)
    )
    assert estimate.terms is not None
    error = (estimate.value - 6 * math.log(0.1)).abs()
    half = scipy.stats.t(probes - 1).ppf(0.975) * squared_standard_error(estimate.terms).sqrt()
    assert float((error <= half).double().mean()) < 0.9
    assert bool(estimate.variance.isnan().all())
    assert bool(estimate.minus(estimate).variance.isnan().all())


def test_a_likelihood_by_random_series_has_no_interval():
    flow = small_vector_flow(4)
    flow.enforce()
    x = torch.rand(5, 4)
    low, high = flow.likelihood(x, log_det=RandomSeries(probes=8), seed=0).mean().interval()
    assert float(low) == -math.inf and float(high) == math.inf
    low, high = flow.likelihood(x, log_det=PowerSeries(30, probes=8), seed=0).mean().interval()
    assert -math.inf < float(low) < float(high) < math.inf


def test_random_series_takes_as_many_products_as_it_says(matrices):
    linearization = MatrixLinearization(matrices[0], 0.7)
    estimator = RandomSeries(Poisson(2.0), exact_terms=2, probes=500)
    estimate = estimator(linearization, torch.Generator().manual_seed(0))
    assert float(estimate.products.mean()) == pytest.approx(4, abs=0.2)


def test_surrogate_gradient_is_unbiased(matrices):
    """Mean gradients over many draws against the exact one, and a control without weights."""
    matrices, exact = matrices

    def misses(estimator):
        rounds = []
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            surrogate = estimator(MatrixLinearization(matrices, 0.7), generator).surrogate
            rounds.append(torch.autograd.grad(surrogate.sum(), matrices)[0])
        rounds = torch.stack(rounds)
        error = rounds.std(0) / len(rounds) ** 0.5
        return float(((rounds.mean(0) - exact).abs() > 4 * error).double().mean())

    # Student's t with 39 degrees of freedom leaves 4 standard errors 3 times in 10,000.
    assert misses(RandomSeries(exact_terms=1, probes=300)) < 0.005
    assert misses(PowerSeries(3, probes=300)) > 0.05


@pytest.mark.parametrize(
    "estimator",
    [
        Exact(limit=7),
        PowerSeries(3, 2, "gaussian", 1e-4),
        RandomSeries(Geometric(0.25), 3, 2),
        RandomSeries(Poisson(1.5)),
        Krylov(5, 1e-3, 2),
        Lanczos(5, 1e-3, 2),
    ],
)
def test_estimators_survive_a_checkpoint(estimator):
    stored = estimator_to_dict(estimator)
    assert estimator_from_dict(stored) == estimator
    with pytest.raises(ValueError, match="unknown estimator 'euler'"):
        estimator_from_dict({**stored, "name": "euler"})


def test_values_out_of_range_are_refused():
    for make in (
        lambda: Poisson(0.0),
        lambda: Geometric(1.0),
        lambda: RandomSeries(exact_terms=0),
        lambda: RandomSeries(probes=0),
    ):
        with pytest.raises(ValueError, match="got"):
            make()
