"""Modes of posteriors against closed forms of linear flows, and conditions of optimality."""

from itertools import cycle

import numpy as np
import pytest
import torch
from helpers import materialize, perturb, small_image_flow
from linear_flows import Normal, image_flow, vector_flow
from scipy.optimize import minimize

from iresflow import ImageFlow
from iresflow.inverse_problems import (
    Domain,
    FlowPrior,
    LatentVariable,
    PatchPrior,
    ProjectedQuasiNewton,
    average_pooling,
    blur,
    identity,
    map_estimate,
    masking,
)
from iresflow.inverse_problems.estimation import first_guess, negative_log_posterior

SHAPE = (1, 4, 4)
EXACT = ProjectedQuasiNewton(1e-9, 2000)

CLOSE = ProjectedQuasiNewton(1e-5)
NOISE = 0.05
KERNEL = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.1], [0.1, 0.0, 0.1]], dtype=torch.float64)

OPERATORS = {
    "denoising": lambda: identity(SHAPE),
    "inpainting": lambda: masking((torch.arange(16).reshape(SHAPE) % 3 > 0).double()),
    "deblurring": lambda: blur(
        torch.tensor([[0.1, 0.2, 0.1], [0, 0.3, 0.1], [0.1, 0, 0.1]]), SHAPE
    ),
    "superresolution": lambda: average_pooling(2, SHAPE),
}


@pytest.fixture(params=OPERATORS)
def operator(request):
    return OPERATORS[request.param]()


def measured(operator, normal, noise, count=3):
    """Noisy measurements of images near the mean of a density."""
    x = normal.mean + 0.03 * torch.randn(count, len(normal.mean))
    clean = operator(x.reshape(count, *operator.shape))
    return clean + noise * torch.randn_like(clean)


def posterior(operator, count):
    """A normal prior, measurements, and the means of their posteriors, inside of the range."""
    prior = FlowPrior(image_flow())
    normal = Normal.of(prior.flow, prior.domain.scale, prior.domain.offset)
    y = measured(operator, normal, NOISE, count)
    mean, _ = normal.posterior(materialize(operator, SHAPE), y, NOISE)
    assert bool(((mean > 0) & (mean < 1)).all())
    return prior, y, mean


def test_the_mode_of_a_normal_density_is_the_posterior_mean(operator):
    prior, y, expected = posterior(operator, 3)
    found = map_estimate(operator, y, prior, NOISE, descent=EXACT)
    assert bool(found.converged.all()) and bool((found.criterion <= 1e-9).all())
    torch.testing.assert_close(found.images.flatten(1), expected, rtol=0, atol=1e-6)


def test_in_latents_that_is_the_same_mode_of_a_normal_density():
    operator = average_pooling(2, SHAPE)
    prior, y, expected = posterior(operator, 2)
    found = map_estimate(operator, y, prior, NOISE, "latent", descent=CLOSE)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.images.flatten(1), expected, rtol=0, atol=1e-4)
    same = map_estimate(operator, y, prior.flow, NOISE, LatentVariable, descent=CLOSE)
    assert torch.equal(found.images, same.images)


def test_the_mode_of_patches_is_the_solution_of_a_linear_system():
    prior = PatchPrior(FlowPrior(vector_flow(9)), (1, 3, 3))
    operator, noise = blur(torch.full((3, 3), 1 / 9), (1, 5, 6)), 0.05
    y = torch.rand(2, 1, 5, 6)
    middle = torch.full((1, 1, 5, 6), 0.5)
    # A sum of parabolas: its curvature by differences of gradients is exact.
    slope = prior.grad(middle).flatten()
    curvature = materialize(lambda d: prior.grad(middle + d) - prior.grad(middle), (1, 5, 6))
    matrix = materialize(operator, (1, 5, 6))
    left = curvature + matrix.mT @ matrix / noise**2
    right = (y - operator(middle)).flatten(1) @ matrix / noise**2 - slope
    expected = 0.5 + torch.linalg.solve(left, right.mT).mT
    found = map_estimate(operator, y, prior, noise, descent=EXACT)
    torch.testing.assert_close(found.images.flatten(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "alpha"), list(zip(OPERATORS, cycle((0, 0.05)), strict=False)))
def test_modes_of_other_densities_fulfil_the_conditions_of_optimality(name, alpha):
    operator, flow = OPERATORS[name](), ImageFlow(SHAPE, (1, 1), 4, alpha=alpha)
    flow.initialize(torch.rand(64, *SHAPE))
    prior, noise = FlowPrior(perturb(flow, 0.1)), 0.2
    # Some of it is beyond the range of images, so that pixels end at the range's ends.
    y = operator(torch.rand(2, *SHAPE)) + torch.randn(2, *operator.measured)
    found = map_estimate(operator, y, prior, noise, descent=EXACT)
    assert bool(found.converged.all())

    def objective(x):
        data = (operator(x) - y).square().flatten(1).sum(1) / (2 * noise**2)
        return data + prior.fn(x)

    torch.testing.assert_close(found.objective, objective(found.images))
    assert bool((found.images == found.images.clamp(0, 1)).all())
    for _ in range(20):
        near = (found.images + 1e-3 * torch.randn_like(found.images)).clamp(0, 1)
        assert bool((objective(near) >= found.objective - 1e-6).all())


def test_latents_reach_the_minimum_that_scipy_reaches():
    flow, operator = small_image_flow(), average_pooling(2, (2, 4, 4))
    prior, noise, y = FlowPrior(flow), 0.3, torch.rand(1, 2, 2, 2)
    found = map_estimate(
        operator, y, prior, noise, "latent", descent=ProjectedQuasiNewton(1e-7, 2000)
    )
    assert bool(found.converged)
    function = negative_log_posterior(operator, y, LatentVariable(prior), noise)
    start = LatentVariable(prior).of_images(first_guess(operator, y, prior))

    def flat(z):
        got = function(torch.from_numpy(z)[None], torch.tensor([0]))
        return float(got.value), got.gradient[0].numpy()

    theirs = minimize(flat, start[0].numpy(), jac=True, method="L-BFGS-B", tol=1e-8)
    assert float(found.objective) == pytest.approx(theirs.fun, abs=1e-3)


def test_the_gradient_in_latents_is_that_of_the_values():
    prior, operator = FlowPrior(small_image_flow()), average_pooling(2, (2, 4, 4))
    function = negative_log_posterior(operator, torch.rand(2, 2, 2, 2), LatentVariable(prior), 0.1)
    z, direction, index = torch.randn(2, 32), torch.randn(2, 32), torch.arange(2)
    up, down = (function(z + step * direction, index).value for step in (1e-5, -1e-5))
    slope = (function(z, index).gradient * direction).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-5, rtol=1e-5, atol=1e-4)


def test_the_misfit_is_in_units_of_the_noise():
    flow, y = small_image_flow(alpha=0), torch.rand(2, 2, 4, 4)
    found = map_estimate(identity((2, 4, 4)), y, flow, 0.3)
    distance = (found.images - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.misfit, distance / (0.3 * 32**0.5))


def test_what_an_operator_sees_is_kept_in_the_first_guess():
    prior, x = FlowPrior(small_image_flow()), torch.rand(3, 2, 4, 4)
    for operator in (
        masking((torch.rand(2, 4, 4) > 0.5).double()),
        average_pooling(2, (2, 4, 4)),
        identity((2, 4, 4)),
    ):
        guess = first_guess(operator, operator(x), prior)
        torch.testing.assert_close(operator(guess), operator(x))
    nothing = masking(torch.zeros(2, 4, 4))
    assert bool((first_guess(nothing, nothing(x), prior) == 0.5).all())


def test_float32_measurements_give_float32_images():
    torch.set_default_dtype(torch.float32)
    flow = small_image_flow(alpha=0)
    found = map_estimate(average_pooling(2, (2, 4, 4)), torch.rand(2, 2, 2, 2), flow, 0.1)
    assert found.images.dtype == torch.float32 and bool(found.converged.all())


def test_a_first_guess_has_no_units():
    prior, operator = FlowPrior(small_image_flow()), average_pooling(2, (2, 4, 4))
    wide = FlowPrior(prior.flow, domain=Domain())  # without ends that would hide the size
    y = torch.rand(2, 2, 2, 2)
    for scale in (1e-200, 1e200):
        found = first_guess(operator, scale * y, wide) / scale
        torch.testing.assert_close(found, first_guess(operator, y, wide))


def test_measurements_and_settings_that_do_not_fit_are_refused():
    flow, operator = small_image_flow(), average_pooling(2, (2, 4, 4))
    y = torch.rand(2, 2, 2, 2)
    for wrong, message in (
        (y[:, :, :1], r"shape \(B, 2, 2, 2\), got \(2, 2, 1, 2\)"),
        (torch.full_like(y, torch.nan), "NaN or infinity"),
        (y.long(), "floats, got torch.int64"),
        (y[:0], "batch is empty"),
        (y.numpy(), "a tensor, got ndarray"),
        (np.ma.masked_array(y.numpy(), mask=y.numpy() > 0.5), "a tensor, got MaskedArray"),
        (None, "a tensor, got NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            map_estimate(operator, wrong, flow, 0.1)
    for noise in (0.0, -0.1, torch.nan, torch.inf, "0.1", None, torch.ones(2)):
        with pytest.raises(ValueError, match="standard deviation above 0"):
            map_estimate(operator, y, flow, noise)
    with pytest.raises(ValueError, match="images to start at are a tensor, got list"):
        map_estimate(operator, y, flow, 0.1, start=[0.5])
    with pytest.raises(ValueError, match="LinearOperator, got Tensor"):
        map_estimate(torch.eye(16), y, flow, 0.1)
    with pytest.raises(ValueError, match="a prior is a FlowPrior.* got Linear"):
        map_estimate(operator, y, torch.nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match="where is one of image, latent"):
        map_estimate(operator, y, flow, 0.1, "pixels")
    with pytest.raises(ValueError, match="only a FlowPrior has a latent"):
        map_estimate(operator, y, PatchPrior(FlowPrior(flow)), 0.1, "latent")
    with pytest.raises(ValueError, match="3 images to start at"):
        map_estimate(operator, y, flow, 0.1, start=torch.rand(3, 2, 4, 4))
    with pytest.raises(ValueError, match=r"images of shape \(B, 2, 4, 4\)"):
        map_estimate(average_pooling(2, (2, 8, 8)), torch.rand(2, 2, 4, 4), flow, 0.1)
