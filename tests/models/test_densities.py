import torch
from helpers import CLOSED

from iresflow.models import DiagonalNormal


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


def test_temperature_scales_the_spread_and_not_the_mean():
    density = DiagonalNormal(2, learned=True)
    with torch.no_grad():
        density.mean.copy_(torch.tensor([5.0, -3.0]))
        z = density.sample(40_000, temperature=0.5)
    error = 4 * 0.5 / 40_000**0.5
    assert bool(((z.mean(0) - density.mean).abs() < error).all())
    assert bool(((z.std(0) - 0.5).abs() < error).all())
    assert not bool(((z.std(0) - 0.55).abs() < error).all())
