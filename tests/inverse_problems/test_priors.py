"""Priors against closed forms of linear flows, finite differences, and loops over patches."""

import math

import pytest
import torch
from helpers import small_image_flow, small_vector_flow
from linear_flows import Normal, image_flow, vector_flow

from iresflow import DerivativeError, ImageFlow, Krylov
from iresflow.inverse_problems import Domain, FlowPrior, PatchPrior, ProjectedQuasiNewton

EXACT = ProjectedQuasiNewton(tol=1e-9, iterations=1000)


def normal_of(prior):
    return Normal.of(prior.flow, prior.domain.scale, prior.domain.offset)


PRIORS = {
    "linear images": lambda: FlowPrior(image_flow(), descent=EXACT),
    "linear vectors": lambda: FlowPrior(vector_flow(6), descent=EXACT),
}


@pytest.fixture(params=PRIORS)
def linear(request):
    """A prior that is normal where the density counts, its moments, and images inside."""
    prior = PRIORS[request.param]()
    return prior, normal_of(prior), 0.3 + 0.4 * torch.rand(5, *prior.shape)


def test_the_value_is_the_negative_log_density_in_units_of_images(linear):
    prior, normal, x = linear
    torch.testing.assert_close(prior.fn(x), -normal.log_prob(x))
    torch.testing.assert_close(prior(x), prior.fn(x))


def test_the_gradient_is_the_closed_form(linear):
    prior, normal, x = linear
    expected = (x.flatten(1) - normal.mean) @ normal.precision
    torch.testing.assert_close(prior.grad(x).flatten(1), expected)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, torch.tensor([1e-3, 1e-3, 1e-2, 0.1, 0.2])])
def test_the_prox_is_the_closed_form(linear, gamma):
    prior, normal, x = linear
    x = normal.mean + 0.05 * torch.randn(5, len(normal.mean))
    weights = torch.as_tensor(gamma).expand(5)[:, None, None]
    matrices = torch.eye(len(normal.mean)) + weights * normal.precision
    right = x[..., None] + weights * (normal.precision @ normal.mean)[:, None]
    expected = torch.linalg.solve(matrices, right)[..., 0]
    assert bool(((expected > 0) & (expected < 1)).all())
    found = prior.prox(x.reshape(5, *prior.shape), gamma=gamma)
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-6)


FLOWS = {
    "images": lambda: small_image_flow(),
    "images by a logit": lambda: small_image_flow(alpha=0.05),
    "centred images": lambda: small_image_flow(alpha=0),
    "monotone": lambda: small_image_flow(block="monotone"),
    "vectors": lambda: small_vector_flow(40),
    "exact": lambda: small_vector_flow(3),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_the_gradient_is_that_of_the_values(kind):
    prior = FlowPrior(FLOWS[kind]())
    # Also where some pixels lie outside.
    x = 1.4 * torch.rand(3, *prior.shape) - 0.2
    direction = torch.randn_like(x)
    up, down = (prior.fn(x + step * direction) for step in (1e-6, -1e-6))
    slope = (prior.grad(x) * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-6, rtol=1e-4, atol=1e-4)


def test_estimators_of_training_would_have_another_gradient():
    flow = small_image_flow(alpha=0)
    x, direction = torch.rand(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    prior = FlowPrior(flow, log_det=Krylov(probes=1))
    up, down = (prior.fn(x + step * direction) for step in (1e-6, -1e-6))
    slope = (prior.grad(x) * direction).flatten(1).sum(1)
    assert not torch.allclose(slope, (up - down) / 2e-6, rtol=1e-4, atol=1e-4)


def test_outside_of_the_range_a_parabola_goes_on():
    prior = FlowPrior(small_image_flow(), outside=50.0)
    x = torch.rand(2, 2, 4, 4)
    x[0, 0, 0, 0], x[0, 1, 2, 2] = -0.5, 3.0
    inside = x.clamp(0, 1)
    torch.testing.assert_close(prior.fn(x), prior.fn(inside) + torch.tensor([25 * 4.25, 0]))
    gradient = prior.grad(x)
    assert float(gradient[0, 0, 0, 0]) == pytest.approx(-25)
    assert float(gradient[0, 1, 2, 2]) == pytest.approx(100)
    assert bool(prior.prox(1e3 * x, gamma=0.1).isfinite().all())


def test_black_and_white_have_a_finite_density():
    for alpha in (0, 1e-6, 0.05):
        prior = FlowPrior(small_image_flow(alpha=alpha))
        for image in (torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)):
            value, gradient = prior.value_and_gradient(image)
            assert bool(value.isfinite().all() and gradient.isfinite().all())


def test_at_the_ends_of_the_range_a_gradient_is_the_one_from_inside():
    prior = FlowPrior(small_image_flow(alpha=0))
    x = torch.randint(0, 2, (3, 2, 4, 4)).double()
    inwards = 1 - 2 * x
    gradient = prior.grad(x)
    slope = (prior.fn(x + 1e-6 * inwards) - prior.fn(x)) / 1e-6
    torch.testing.assert_close((gradient * inwards).flatten(1).sum(1), slope, rtol=1e-3, atol=1e-3)


def test_levels_stand_for_the_middles_of_their_intervals():
    flow = ImageFlow((1, 2, 2), blocks=(1,), hidden=2, levels=16)
    domain = Domain.of(flow)
    images = torch.arange(16.0) / 15
    torch.testing.assert_close(domain.to_flow(images), (torch.arange(16.0) + 0.5) / 16)
    torch.testing.assert_close(domain.from_flow(domain.to_flow(images)), images)
    assert torch.equal(flow.quantize(domain.to_flow(images)).long(), torch.arange(16))


def test_a_value_does_not_depend_on_the_batch_or_on_training_mode():
    flow = small_vector_flow(40)
    prior, x = FlowPrior(flow), torch.randn(4, 40)
    whole = prior.fn(x)
    prior.train()
    flow.train()
    for parameter in flow.parameters():
        parameter.data.add_(1)
    torch.testing.assert_close(torch.cat([prior.fn(row[None]) for row in x]), whole)
    torch.testing.assert_close(prior.fn(x), whole, rtol=0, atol=0)
    alone = torch.cat([prior.prox(row[None], gamma=0.02) for row in x[:2]])
    torch.testing.assert_close(prior.prox(x, gamma=0.02)[:2], alone, rtol=1e-4, atol=1e-4)


def test_a_conditional_flow_is_a_prior_for_each_context():
    flow = small_image_flow(context_dim=3)
    x, context = torch.rand(2, 2, 4, 4), torch.randn(1, 3)
    prior = FlowPrior(flow, context)
    same = FlowPrior(flow, context + 1)
    expected = -flow.eval().log_prob(prior.domain.to_flow(x), context, prior.log_det)
    scale = -32 * math.log(prior.domain.scale)
    torch.testing.assert_close(prior.fn(x), expected + scale)
    assert not torch.allclose(prior.fn(x), same.fn(x))
    with pytest.raises(ValueError, match="needs a context"):
        FlowPrior(flow).fn(x)


def test_derivatives_of_an_estimated_gradient_are_refused():
    prior = FlowPrior(small_vector_flow(40))
    x = torch.randn(1, 40, requires_grad=True)
    with pytest.raises(DerivativeError):
        torch.autograd.grad(prior.fn(x).sum(), x, create_graph=True)


def test_images_that_are_none_are_refused():
    prior, nan = FlowPrior(small_image_flow()), torch.full((1, 2, 4, 4), torch.nan)
    patches = PatchPrior(prior)
    for take in (prior.fn, prior.grad, prior.prox, patches.fn, patches.grad, patches.prox):
        with pytest.raises(ValueError, match="NaN or infinity"):
            take(nan)
        with pytest.raises(ValueError, match="floats"):
            take(torch.zeros(1, 2, 4, 4, dtype=torch.uint8))
        with pytest.raises(ValueError, match=r"got \(1, 3, 4, 4\)"):
            take(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"got \(1, 2, 8, 8\)"):
        prior.fn(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match="4 x 4 pixels or more"):
        patches.fn(torch.rand(1, 2, 3, 8))


def test_settings_out_of_range_are_refused():
    flow = small_image_flow()
    for gamma in (0.0, -1.0, torch.nan):
        with pytest.raises(ValueError, match="gamma must be positive"):
            FlowPrior(flow).prox(torch.rand(1, 2, 4, 4), gamma=gamma)
    with pytest.raises(ValueError, match="gamma is one number or 1 of them, got 3"):
        FlowPrior(flow).prox(torch.rand(1, 2, 4, 4), gamma=torch.ones(3))
    with pytest.raises(ValueError, match="curvature outside"):
        FlowPrior(flow, outside=0.0)
    with pytest.raises(ValueError, match="of a Flow, got Linear"):
        FlowPrior(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="low must be below"):
        Domain(1, 0)
    with pytest.raises(ValueError, match="scale must be positive"):
        Domain(scale=0)
    with pytest.raises(ValueError, match="iterations must be"):
        ProjectedQuasiNewton(iterations=0)
    with pytest.raises(ValueError, match="have 8 entries, and the flow takes 32"):
        PatchPrior(FlowPrior(flow), (2, 2, 2))
    with pytest.raises(ValueError, match=r"a patch is \(C, h, w\)"):
        PatchPrior(FlowPrior(small_vector_flow(4)))
    with pytest.raises(ValueError, match="stride must be"):
        PatchPrior(FlowPrior(flow), stride=0)


def patch_prior(kind, stride):
    if kind == "images":
        return PatchPrior(FlowPrior(small_image_flow(alpha=0)), stride=stride)
    return PatchPrior(FlowPrior(small_vector_flow(18)), (2, 3, 3), stride=stride)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_patches_are_summed_as_a_loop_would(kind, stride):
    prior, x = patch_prior(kind, stride), 1.2 * torch.rand(2, 2, 9, 6) - 0.1
    side = prior.size[1]
    tops, lefts = (
        sorted({*range(0, length - side + 1, stride), length - side}) for length in (9, 6)
    )
    # Pixels outside are the images' matter; a patch is of what lies in the range.
    inside = prior.domain.project(x)
    values = [
        prior.patches.fn(inside[:, :, i : i + side, j : j + side].reshape(2, *prior.patches.shape))
        for i in tops
        for j in lefts
    ]
    entries = x[0].numel() / (2 * side**2)
    expected = entries * torch.stack(values).mean(0)
    expected += prior.outside / 2 * (x - inside).square().flatten(1).sum(1)
    torch.testing.assert_close(prior.fn(x), expected)


@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_the_gradient_of_patches_is_that_of_the_values(kind, monkeypatch):
    prior, x = patch_prior(kind, 2), 1.2 * torch.rand(2, 2, 9, 6) - 0.1
    monkeypatch.setattr("iresflow.inverse_problems.patch_prior.AT_ONCE", 5)
    value, gradient = prior.value_and_gradient(x)
    torch.testing.assert_close(value, prior.fn(x))
    x.requires_grad_()
    (expected,) = torch.autograd.grad(prior.fn(x).sum(), x)
    torch.testing.assert_close(gradient, expected)
    x, direction = x.detach(), torch.randn_like(x)
    up, down = (prior.fn(x + step * direction) for step in (1e-6, -1e-6))
    slope = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-6, rtol=1e-4, atol=1e-4)


def test_an_image_of_one_patch_is_that_patch():
    flow = small_image_flow()
    x = torch.rand(2, 2, 4, 4)
    torch.testing.assert_close(PatchPrior(FlowPrior(flow)).fn(x), FlowPrior(flow).fn(x))
