import math

import numpy as np
import pytest
import torch
from helpers import CLOSED, small_vector_flow
from scipy import stats

import iresflow
from iresflow import VectorFlow
from iresflow.models import DiagonalNormal, StudentT

DEGREES = (0.3, 1.0, 2.5, 30.0, 1e4, 1e7)


def student(degrees, dim=2, **settings):
    return StudentT(dim, degrees=degrees, **settings)


def test_normal_agrees_with_torch_distributions():
    density = DiagonalNormal(3, learned=True, context_dim=2)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    z, context = torch.randn(7, 3), torch.randn(7, 2)
    shift, spread = density.shift(context).chunk(2, dim=1)
    expected = torch.distributions.Normal(
        density.mean + shift, (density.log_std + spread).exp()
    ).log_prob(z)
    torch.testing.assert_close(
        density.log_prob(z, context), expected.sum(1), rtol=CLOSED, atol=CLOSED
    )


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-7), (torch.float32, 2e-5)], ids=str
)
def test_student_agrees_with_scipy(dtype, error, degrees):
    # The error in float64 is scipy's own rounding at ten million degrees of freedom.
    density = student(degrees, 3).to(dtype)
    z = (torch.tensor([0.0, 0.1, 1.0, 7.0, 1e3])[:, None] * torch.randn(5, 3)).to(dtype)
    reference = stats.multivariate_t(shape=np.eye(3), df=float(density.log_degrees.detach().exp()))
    found = density.log_prob(z)
    assert found.dtype == dtype
    expected = torch.from_numpy(reference.logpdf(z.double().numpy()))
    torch.testing.assert_close(found.detach().double(), expected, rtol=error, atol=error)


def test_student_costs_a_logarithm_far_out():
    density = student(3.0, 2).float()
    z = torch.tensor([[1e15, 0.0], [1e16, 0.0]])
    near, far = density.log_prob(z.float()).detach()
    assert float(near - far) == pytest.approx(5 * math.log(10), rel=1e-5)


def test_student_is_normal_for_many_degrees_of_freedom():
    z = torch.randn(50, 2)
    normal = DiagonalNormal(2).log_prob(z)
    torch.testing.assert_close(student(1e8).log_prob(z).detach(), normal, rtol=0, atol=1e-5)
    assert not torch.allclose(student(30.0).log_prob(z).detach(), normal, rtol=0, atol=1e-2)


def test_student_has_the_gradients_of_its_log_density():
    density = student(1.5, learned=True)
    z = torch.randn(4, 2, requires_grad=True)
    parameters = [density.mean, density.log_std, density.log_degrees]
    torch.autograd.gradcheck(lambda z, *_: density.log_prob(z), (z, *parameters))


@pytest.mark.parametrize("degrees", [0.7, 3.0, 8.0])
def test_student_draws_from_itself(degrees):
    # Each entry has a t distribution, and the squared radius over D one of F.
    n, dim = 40_000, 3
    z = student(degrees, dim).standard_sample(n, torch.Generator().manual_seed(0)).detach()
    radius = z.square().mean(1)
    for nu, right in ((degrees, True), (degrees / 2, False)):
        found = [stats.kstest(column, stats.t(nu).cdf).pvalue for column in z.T]
        found.append(stats.kstest(radius, stats.f(dim, nu).cdf).pvalue)
        assert min(found) > 1e-4 if right else max(found) < 1e-4


@pytest.mark.parametrize("degrees", [1.0, 4.0, 1e6])
def test_latents_of_student_are_moved_to_normal_ones(degrees):
    density = student(degrees, 3, learned=True)
    with torch.no_grad():
        density.mean.fill_(2.0)
        density.log_std.fill_(1.0)
    z = density.sample(20_000, generator=torch.Generator().manual_seed(0)).detach()
    normal = density.standard_normal(z)
    for column in normal.T:
        assert stats.kstest(column, stats.norm.cdf).pvalue > 1e-4
    assert stats.kstest(normal.square().sum(1), stats.chi2(3).cdf).pvalue > 1e-4
    if degrees < 1e6:
        assert stats.kstest((z - 2) / math.e, stats.norm.cdf, axis=0).pvalue.max() < 1e-4
    else:
        torch.testing.assert_close(normal, (z - 2) / math.e, rtol=1e-4, atol=1e-4)


def test_latents_far_out_stay_far_out():
    rows = torch.tensor([[1.0], [1e3], [1e9], [1e-9]]) * torch.tensor([[0.6, 0.8]])
    moved = student(2.0).standard_normal(rows)
    radii = moved.norm(dim=1)
    # P(R > r) = 1 / (1 + r^2 / 2) for two degrees in two dimensions, exp(-r^2 / 2) for a normal.
    expected = (2 * torch.log1p(rows.square().sum(1) / 2)).sqrt()
    torch.testing.assert_close(radii, expected, rtol=1e-9, atol=0)


def test_draws_of_student_have_derivatives_by_its_degrees():
    # Of the mean of log(1 + z^2), whose derivative a quadrature knows.
    density = student(3.0, 1)
    z = density.standard_sample(200_000, torch.Generator().manual_seed(1))
    each = z.square().log1p()
    (slope,) = torch.autograd.grad(each.mean(), density.log_degrees)
    spread = float(each.detach().std()) / len(z) ** 0.5
    step = 0.05

    def mean(nu):
        return stats.t(nu).expect(lambda t: np.log1p(t * t), lb=-np.inf, ub=np.inf)

    expected = (mean(3.0 * math.exp(step)) - mean(3.0 * math.exp(-step))) / (2 * step)
    assert abs(float(slope) - expected) < 4 * spread
    assert abs(expected) > 8 * spread  # so that a slope of 0 would fail


@pytest.mark.parametrize("kind", [DiagonalNormal, StudentT])
def test_temperature_scales_the_spread_and_not_the_mean(kind):
    density = kind(2, learned=True)
    with torch.no_grad():
        density.mean.copy_(torch.tensor([5.0, -3.0]))
        z = density.sample(40_000, temperature=0.5)
    spread = 0.5 if kind is DiagonalNormal else 0.5 * (10 / 8) ** 0.5  # of 10 degrees of freedom
    error = 4 * spread / 40_000**0.5
    assert bool(((z.mean(0) - density.mean).abs() < error).all())
    assert bool(((z.std(0) - spread).abs() < error).all())
    assert not bool(((z.std(0) - 1.1 * spread).abs() < error).all())


def test_training_finds_the_tails(tmp_path):
    # A table of two degrees of freedom, for which a normal density pays for the rows far out.
    rows = torch.from_numpy(
        stats.multivariate_t(shape=np.eye(2), df=2.0).rvs(4000, random_state=0)
    ).float()
    best = {}
    for prior in ("normal", "student"):
        flow = VectorFlow(2, 1, 8, prior=prior)
        fitted = iresflow.fit(flow, rows, steps=300, learning_rate=0.03, bar=False, seed=0)
        best[prior] = fitted.best
    assert best["student"] < best["normal"] - 0.1
    assert 1.0 < float(flow.base.log_degrees.detach().exp()) < 4.0
    flow.save(tmp_path / "flow.pt")
    again = iresflow.load(tmp_path / "flow.pt")
    assert torch.equal(again.log_prob(rows[:5]), flow.log_prob(rows[:5]))


def test_degrees_of_freedom_that_are_no_number_have_no_certificate():
    flow = small_vector_flow(prior="student").float()
    with torch.no_grad():
        flow.base.log_degrees.fill_(100.0)
    certificate = flow.certify()
    assert not certificate
    assert "exp(100) degrees of freedom are no normal number" in str(certificate)


def test_an_unknown_prior_is_refused():
    with pytest.raises(ValueError, match="unknown prior 'cauchy'; choose one of normal, student"):
        VectorFlow(2, prior="cauchy")
