"""Noise of any density counts its own bits: with each, the bound is one of the same likelihood."""

import math

import pytest
import torch
from helpers import dense_jacobian, expand, perturb
from scipy import stats

import iresflow
from iresflow import Exact, ImageFlow
from iresflow.bijections import dequantize, quantize
from iresflow.models.dequantization import TruncatedNormalNoise
from iresflow.models.likelihood import sample_stream
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.likelihood import MaximumLikelihood

NOISES = {
    "uniform": {},
    "truncated-normal": {"dequantization_deviation": 0.3},
    "variational": {"dequantization_blocks": 2},
}


def flow_with(noise, shape=(1, 2, 2), blocks=(1,), moved=True):
    flow = ImageFlow(shape, blocks, 5, levels=4, alpha=0.0, dequantization=noise, **NOISES[noise])
    images = torch.randint(0, 4, (64, *shape))
    flow.initialize(flow.dequantize(images))
    return perturb(flow, 0.3) if moved else flow.eval()


@pytest.fixture(params=NOISES)
def noise(request):
    return request.param


def test_uniform_noise_gives_the_numbers_that_it_always_gave():
    flow, images = flow_with("uniform"), torch.randint(0, 4, (5, 1, 2, 2))
    x = dequantize(images, 4, dtype=torch.float64, generator=sample_stream((images,), None, 3))
    expected = math.log2(4) - flow.log_prob(x, None, Exact()) / (4 * math.log(2))
    ours = flow.bits_per_dim(images, log_det=Exact(), seed=3).values
    assert torch.equal(ours, expected.detach())
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    old = dequantize(images, 4, dtype=torch.float64, generator=generators[0])
    assert torch.equal(flow.dequantize(images, generators[1]), old)


def test_variational_noise_starts_as_uniform_noise():
    flow = flow_with("variational", moved=False)
    images = torch.randint(0, 4, (4000, 1, 2, 2))
    noisy = flow.dequantized(images, torch.Generator().manual_seed(0))
    assert float(noisy.log_density.detach().abs().max()) < 1e-12
    u = (noisy.value * 4 - images).detach().flatten()
    assert float(stats.kstest(u, "uniform").pvalue) > 1e-3
    assert float(stats.kstest(u**1.1, "uniform").pvalue) < 1e-6  # what is not uniform
    x, ours = noisy.value[:5], flow.bits_per_dim(images[:5], log_det=Exact(), seed=3)
    assert ours.values.shape == (5,) and x.shape == (5, 1, 2, 2)
    stream = sample_stream((images[:5],), None, 3)
    x = flow.dequantize(images[:5], stream)
    expected = math.log2(4) - flow.log_prob(x, None, Exact()) / (4 * math.log(2))
    torch.testing.assert_close(ours.values, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", [(1,), (0, 1)])
def test_the_density_of_variational_noise_is_that_of_its_dense_jacobian(blocks):
    flow = flow_with("variational", (2, 2, 2), blocks)
    images = torch.randint(0, 4, (3, 2, 2, 2))
    noisy = flow.dequantized(images, torch.Generator().manual_seed(1), Exact())
    generator = torch.Generator().manual_seed(1)
    epsilon, context = flow.noise._drawn(images, 4, torch.float64, generator)

    def noise_of(e):
        return 4 * flow.noise._within(images, flow.noise.bijection.transform(e, context), 4)

    jacobian = dense_jacobian(noise_of, epsilon)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(epsilon).flatten(1).sum(1)
    expected = normal - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(noisy.log_density.detach(), expected, rtol=1e-8, atol=1e-8)
    assert float(noisy.log_density.detach().abs().min()) > 1e-3
    sampled = flow.dequantize(images, torch.Generator().manual_seed(1))
    torch.testing.assert_close(sampled, noisy.value)


@pytest.mark.parametrize("deviation", [0.05, 1 / 6, 0.5, 30.0])
def test_truncated_normal_noise_is_scipys(deviation):
    images = torch.full((3000, 1, 1, 2), 2)
    noisy = TruncatedNormalNoise(deviation)(
        images, 8, torch.float64, torch.Generator().manual_seed(0)
    )
    u = (noisy.value * 8 - 2).flatten()
    end = 0.5 / deviation
    oracle = stats.truncnorm(-end, end, loc=0.5, scale=deviation)
    assert float(stats.kstest(u, oracle.cdf).pvalue) > 1e-3
    assert float(stats.kstest(u, stats.norm(0.52, deviation).cdf).pvalue) < 1e-3
    expected = torch.from_numpy(oracle.logpdf(u.view(-1, 2))).sum(1)
    torch.testing.assert_close(noisy.log_density, expected, rtol=1e-8, atol=1e-8)
    if deviation == 30.0:
        assert float(noisy.log_density.abs().max()) < 1e-3  # as good as uniform


def test_all_noise_stays_in_its_grey_level(noise):
    flow = flow_with(noise).float()
    images = torch.randint(0, 4, (2000, 1, 2, 2))
    x = flow.dequantize(images)
    assert x.dtype == torch.float32 and 0 <= float(x.min()) <= float(x.max()) < 1
    assert torch.equal(quantize(x, 4), images.to(torch.uint8))


def integers_probability(flow, image, points=24):
    """The integral of the density over the grey levels of one image of two pixels."""
    nodes, weights = (torch.from_numpy(a) for a in stats_legendre(points))
    grid = torch.cartesian_prod(nodes, nodes)
    x = (image.view(1, 2) + grid) / 4
    density = flow.log_prob(x.view(-1, 1, 1, 2), None, Exact()).exp().detach()
    return float((density * torch.outer(weights, weights).flatten()).sum()) / 4**2


def stats_legendre(points):
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(points)
    return (x + 1) / 2, w / 2


def test_the_mean_weight_is_the_probability_of_the_integers(noise):
    """E_q[p(x) / q(u)] is the integral of p over the grey levels, whatever q."""
    flow = flow_with(noise, (1, 1, 2))
    image = torch.tensor([1, 2])
    true = integers_probability(flow, image)
    images = image.view(1, 1, 1, 2).expand(20_000, -1, -1, -1)
    with torch.no_grad():
        noisy = flow.dequantized(images, torch.Generator().manual_seed(0), Exact())
        log_p = flow.log_prob(noisy.value, None, Exact())
        weights = (log_p - noisy.log_density).exp() / 4**2
        error = float(weights.std()) / len(weights) ** 0.5
        assert abs(float(weights.mean()) - true) <= 4 * error + 1e-9
        if noise != "uniform":  # without what the noise counts, it is another number
            wrong = log_p.exp() / 4**2
            error = float(wrong.std()) / len(wrong) ** 0.5
            assert abs(float(wrong.mean()) - true) > 4 * error
    bound = float((log_p - noisy.log_density).mean()) - 2 * math.log(4)
    assert bound <= math.log(true) + 1e-9


def test_bits_with_estimated_log_determinants_are_within_their_errors(noise):
    flow, images = flow_with(noise), torch.randint(0, 4, (6, 1, 2, 2))
    exact = flow.bits_per_dim(images, log_det=Exact(), seed=1)
    found = flow.bits_per_dim(images, log_det=iresflow.Krylov(tol=1e-9, probes=200), seed=1)
    allowed = 4 * found.probe_variance.sqrt() + found.truncation_bounds + 1e-9
    assert bool(((found.values - exact.values).abs() <= allowed).all())
    assert not bool(((found.values - exact.values - 0.5).abs() <= allowed).any())
    alone = flow.bits_per_dim(images[2:3], seed=1).values
    torch.testing.assert_close(alone, flow.bits_per_dim(images, seed=1).values[2:3])


def test_importance_weighting_never_loosens_the_bound(noise):
    flow, images = flow_with(noise), torch.randint(0, 4, (8, 1, 2, 2), dtype=torch.uint8)
    result = evaluate(flow, Batch(images), precision=Precision(importance_samples=4))
    assert result.importance_mean < result.mean


def test_training_reaches_the_noise_and_logs_its_share(noise):
    flow, images = flow_with(noise).train(), torch.randint(0, 4, (8, 1, 2, 2))
    terms = MaximumLikelihood()(flow, Batch(images), torch.Generator().manual_seed(0))
    assert ("log_noise" in terms.logged) == (noise != "uniform")
    parts = terms.logged["log_base"] + terms.logged["log_det"]
    parts = parts - terms.logged.get("log_noise", 0)
    torch.testing.assert_close(terms.loss, 2 - parts)
    terms.loss.backward()
    missing = [name for name, p in flow.noise.named_parameters() if p.grad is None]
    assert not missing
    moved = [p for p in flow.noise.parameters() if bool(p.grad.any())]
    assert bool(moved) == (noise == "variational")


def test_the_gradient_of_the_bound_is_right():
    """Against finite differences of the bound itself, with the same noise and no estimates."""
    flow, images = flow_with("variational"), torch.randint(0, 4, (3, 1, 2, 2))

    def bound():
        noisy = flow.dequantized(images, torch.Generator().manual_seed(0), Exact())
        return (flow.log_prob(noisy.value, None, Exact()) - noisy.log_density).sum()

    parameters = [flow.noise.bijection.maps[0].branch.layers[1].bias, flow.base.mean]
    gradients = torch.autograd.grad(bound(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        step = 1e-5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[0] += sign * step
                ends.append(float(bound()))
                parameter[0] -= sign * step
        assert float(gradient[0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_blocks_of_the_noise_are_certified_and_stored(tmp_path):
    flow = flow_with("variational")
    names = [block.name for block in flow.certify()]
    assert names[-2:] == ["noise.bijection.maps.0", "noise.bijection.maps.1"]
    flow.save(tmp_path / "model.pt")
    again = iresflow.load(tmp_path / "model.pt")
    assert len(list(again.noise.blocks())) == 2 and again.spec == flow.spec
    expand(flow.noise)
    assert not flow.certify()
    with pytest.raises(iresflow.NotContractiveError):
        flow.bits_per_dim(torch.zeros(2, 1, 2, 2, dtype=torch.long))
    assert flow.enforce()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dequantization": "loud"}, "unknown dequantization 'loud'; choose one of uniform"),
        (
            {"dequantization": "truncated-normal", "dequantization_deviation": 0.0},
            "deviation must be above 0",
        ),
        ({"dequantization": "variational", "dequantization_blocks": 0}, "1 or more, got 0"),
    ],
)
def test_bad_settings_are_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageFlow((1, 2, 2), (1,), 4, **settings)


def test_a_noise_of_other_images_is_refused():
    flow = flow_with("variational")
    for images in (torch.zeros(2, 1, 4, 4).long(), torch.full((2, 1, 2, 2), 4)):
        with pytest.raises(ValueError, match="this model takes"):
            flow.dequantized(images)
    flow.noise = flow_with("variational", (1, 4, 4)).noise
    for call in (flow.dequantized, flow.dequantize, flow.bits_per_dim):
        with pytest.raises(ValueError, match=r"of shape \(B, 1, 4, 4\), got \(2, 1, 2, 2\)"):
            call(torch.zeros(2, 1, 2, 2).long())
