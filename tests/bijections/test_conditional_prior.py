import math

import pytest
import torch
from helpers import perturb

from iresflow import ImageFlow
from iresflow.bijections import Composition, ConditionalPrior, Inverse, MultiScale, Squeeze
from iresflow.lipschitz import ACTIVATIONS, conv_branch


def new_prior(gain=1.0):
    settings = {"kernels": (3, 3), "activation": ACTIVATIONS["lipswish"], "coeff": 0.9}
    prior = perturb(ConditionalPrior(conv_branch(2, 6, (3, 4), outputs=6, **settings), 3), 0.5)
    with torch.no_grad():
        prior.gain.mul_(gain)
    return prior


def test_it_starts_as_the_identity():
    settings = {"activation": ACTIVATIONS["elu"], "coeff": 0.9}
    prior = ConditionalPrior(conv_branch(2, 6, (3, 4), outputs=6, **settings), 3)
    u, v = torch.randn(5, 3, 3, 4), torch.randn(5, 2, 3, 4)
    z, log_det = prior(u, v, None)
    torch.testing.assert_close(z, u, rtol=0, atol=0)
    assert not bool(log_det.any())


def test_the_density_is_a_normal_one_given_what_stays():
    prior = new_prior(2.0)
    u, v = torch.randn(5, 3, 3, 4), torch.randn(5, 2, 3, 4)
    z, log_det = prior(u, v, None)
    raw = prior.gain[:, None, None] * prior.network(v)
    mean, deviation = raw[:, :3], (3 * torch.tanh(raw[:, 3:] / 3)).exp()
    expected = torch.distributions.Normal(mean, deviation).log_prob(u).flatten(1).sum(1)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(standard + log_det, expected)


@pytest.mark.parametrize("gain", [1.0, 8.0])
@pytest.mark.parametrize("distance", [1e-9, 1e-3, 0.5])
def test_the_error_of_what_stays_is_amplified_by_no_more_than_is_claimed(gain, distance):
    prior = new_prior(gain)
    z, v = 2 * torch.randn(400, 3, 3, 4), torch.randn(400, 2, 3, 4)
    step = torch.randn_like(v)
    step = step * distance / step.flatten(1).norm(dim=1)[:, None, None, None]
    exact = prior.invert(z, Inverse.closed_form(v), None).value[:, :3]
    nothing = torch.zeros(400)
    rest = Inverse(v + step, nothing.long(), nothing, nothing, nothing + distance, 1.0)
    found = prior.invert(z, rest, None)
    moved = (found.value[:, :3] - exact).detach().flatten(1).norm(dim=1)
    total = torch.hypot(moved, nothing + distance)
    assert bool((total <= found.bound).all()) and bool(found.bound.isfinite().all())
    # Taking the map for one that keeps distances would be wrong where the gain is large.
    assert gain == 1.0 or bool((moved > distance).any())
    assert float(found.bound.max()) <= 1e3 * gain * distance + 1e-6
    assert found.lipschitz == math.inf


def test_it_is_invertible_in_floats_whatever_the_weights():
    prior = new_prior(1e12).float()
    u, v = torch.randn(5, 3, 3, 4).float(), torch.randn(5, 2, 3, 4).float()
    _, log_det = prior(u, v, None)
    assert bool((log_det.abs() <= 3 * 36 * (1 + 1e-6)).all()) and bool((log_det.abs() > 10).any())
    stretch = prior.stretch(36)
    assert (stretch.log_det_lower, stretch.log_det_upper) == (-3 * 36, 3 * 36)
    back = prior.invert(u, Inverse.closed_form(v), None)
    assert bool(back.value.isfinite().all())


def test_a_prior_of_other_channels_is_refused():
    scales = [Squeeze(), Composition()]
    shapes = [(5, 3, 4), (2, 3, 4)]
    for index, factored in ((1, 3), (0, 2)):
        with pytest.raises(ValueError, match=f"prior of scale {index} is of 3 channels"):
            MultiScale(scales, shapes, [factored], {index: new_prior()})
    with pytest.raises(ValueError, match="nothing is here"):
        ImageFlow((1, 4, 4), (1, 1), 4, factor_out=False, conditional_prior=True)
    with pytest.raises(ValueError, match="nothing is here"):
        ImageFlow((1, 4, 4), (0, 1), 4, conditional_prior=True)
