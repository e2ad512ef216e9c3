import pytest
import torch
from helpers import CLOSED

from iresflow.lipschitz import ACTIVATIONS, LipSwish

NAMES = sorted(ACTIVATIONS)


def derivatives(activation, h):
    """Value and two derivatives by autograd of the plain forward pass."""
    h = h.clone().requires_grad_()
    value = activation(h)
    (slope,) = torch.autograd.grad(value.sum(), h, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), h)
    return value.detach(), slope.detach(), curvature


@pytest.mark.parametrize("name", NAMES)
def test_jets_agree_with_autograd(name):
    activation = ACTIVATIONS[name]()
    h = torch.linspace(-6, 6, 101) + 0.01
    expected = derivatives(activation, h)
    beta = activation.beta()
    with torch.no_grad():
        jet = activation.jet(h, beta)
        pair = activation.value_and_slope(h, beta)
    for ours, theirs in zip((*jet, *pair), (*expected, *expected[:2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=CLOSED, atol=CLOSED)


@pytest.mark.parametrize("name", NAMES)
def test_lipschitz_constant_is_the_supremum_of_the_slope(name):
    activation = ACTIVATIONS[name]()
    h = torch.linspace(-30, 30, 2_000_001)
    largest = float(activation.value_and_slope(h, activation.beta())[1].detach().abs().max())
    assert largest <= activation.lipschitz
    assert largest >= activation.lipschitz - 1e-6


def test_the_trainable_slope_does_not_move_the_lipschitz_constant():
    activation = LipSwish()
    h = torch.linspace(-300, 300, 2_000_001)
    for raw in (-3.0, 4.0):
        activation.raw_beta.data.fill_(raw)
        slope = activation.value_and_slope(h, activation.beta())[1].detach()
        assert float(slope.abs().max()) <= activation.lipschitz
