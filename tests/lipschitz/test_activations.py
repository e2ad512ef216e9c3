import math

import pytest
import torch
from helpers import CLOSED

from iresflow.lipschitz import (
    ACTIVATIONS,
    ELU,
    Activation,
    CLipSwish,
    LipSwish,
    Sine,
    SineCosine,
    dense_branch,
    links_named,
)

NAMES = sorted(ACTIVATIONS)


def derivatives(activation, h):
    """Value and two derivatives by autograd of the plain forward pass."""
    h = h.clone().requires_grad_()
    value = activation(h)
    slopes, curvatures = [], []
    for part in value.chunk(activation.width, dim=1):
        (slope,) = torch.autograd.grad(part.sum(), h, create_graph=True)
        slopes.append(slope.detach())
        curvatures.append(torch.autograd.grad(slope.sum(), h, retain_graph=True)[0])
    return value.detach(), torch.cat(slopes, 1), torch.cat(curvatures, 1)


@pytest.mark.parametrize("name", NAMES)
def test_jets_agree_with_autograd(name):
    activation = ACTIVATIONS[name]()
    h = torch.linspace(-6, 6, 102).view(17, 6) + 0.01
    expected = derivatives(activation, h)
    beta = activation.beta()
    with torch.no_grad():
        jets = [activation.jet(h, beta, order) for order in range(3)]
    for order, jet in enumerate(jets):
        for ours, theirs in zip(jet, expected[: order + 1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=CLOSED, atol=CLOSED)


def test_elu_is_exact_where_its_halves_meet_and_beyond():
    h = torch.tensor([0.0, 3.0, -2.0, 1e300, -1e300, math.inf, -math.inf], requires_grad=True)
    value, slope, curvature = ELU.jet(h, None, 2)
    expected = [0.0, 3.0, math.expm1(-2), 1e300, -1.0, math.inf, -1.0]
    torch.testing.assert_close(value.detach(), torch.tensor(expected), rtol=1e-15, atol=0)
    assert slope.tolist() == [1.0, 1.0, math.exp(-2), 1.0, 0.0, 1.0, 0.0]
    assert curvature.tolist() == [0.0, 0.0, math.exp(-2), 0.0, 0.0, 0.0, 0.0]
    # Autograd takes the same sides at 0: padded entries are 0 exactly.
    (first,) = torch.autograd.grad(value.sum(), h, create_graph=True)
    torch.testing.assert_close(first.detach(), slope.detach(), rtol=1e-15, atol=0)
    for part in (first, slope):
        (second,) = torch.autograd.grad(part[:5].sum(), h, retain_graph=True)
        torch.testing.assert_close(second, curvature, rtol=1e-15, atol=0)
    assert all(bool(part.isnan()) for part in ELU.jet(torch.tensor(math.nan), None, 2))


@pytest.mark.parametrize("name", NAMES)
def test_lipschitz_constant_is_the_supremum_of_the_slope(name):
    activation = ACTIVATIONS[name]()
    h = torch.linspace(-30, 30, 2_000_001)[:, None]
    slopes = activation.jet(h, activation.beta(), 1)[1].detach()
    for norm in (1.0, 2.0, math.inf):
        largest = float(torch.linalg.vector_norm(slopes, ord=norm, dim=1).max())
        assert largest <= activation.lipschitz_in(norm) * (1 + 1e-15)  # of the slopes' rounding
        assert largest >= activation.lipschitz_in(norm) - 1e-9


def test_the_trainable_slope_does_not_move_the_lipschitz_constant():
    h = torch.linspace(-300, 300, 2_000_001)[:, None]
    for activation in (LipSwish(), CLipSwish(), Sine(), SineCosine()):
        for raw in (-3.0, 4.0):
            activation.raw_beta.data.fill_(raw)
            slope = activation.jet(h, activation.beta(), 1)[1].detach()
            assert float(slope.norm(dim=1).max()) <= activation.lipschitz * (1 + 1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("links", ["chained", "concatenated"])
def test_trainable_slopes_start_in_front_and_between(name, links):
    def starts(**options):
        branch = dense_branch(
            2,
            [3, 3],
            activation=ACTIVATIONS[name],
            coeff=0.9,
            links=links_named(links),
            **options,
        )
        betas = [a.beta() for a in branch.activations if isinstance(a, Activation)]
        return [None if beta is None else beta.item() for beta in betas]

    slopes = (0.5, 4.0)
    if ACTIVATIONS[name]().beta() is None:
        assert starts(slopes=slopes) == [None] * 3
    else:
        assert starts(slopes=slopes) == pytest.approx([0.5, 4, 4], rel=1e-12)
        assert starts(slopes=slopes, activate_input=False)[-2:] == pytest.approx([4, 4], rel=1e-12)
        assert starts(slopes=(1e-3, 1e3)) == pytest.approx([1e-3, 1e3, 1e3], rel=1e-12)
        assert starts() == pytest.approx([0.974077] * 3, rel=1e-6)


def test_constants_of_the_swish_family_follow_from_the_extremum_of_its_slope():
    def slope(u):
        gate = 1 / (1 + math.exp(-u))
        return gate + u * gate * (1 - gate)

    # The extremum is where s'' = 0: 2 + u (1 - 2 sigmoid(u)) changes sign.
    low, high = 2.0, 3.0
    for _ in range(60):
        root = (low + high) / 2
        low, high = (root, high) if 2 - root * math.tanh(root / 2) > 0 else (low, root)
    largest = slope(root)
    assert slope(root) + slope(-root) == pytest.approx(1, abs=1e-15)
    assert 0 <= LipSwish.lipschitz * 1.1 - largest < 1e-11
    assert 0 <= CLipSwish.lipschitz * 1.1044 - math.hypot(largest, 1 - largest) < 2e-11
    assert CLipSwish.lipschitz < 1


def test_the_pair_of_sine_and_cosine_loses_no_gain_anywhere():
    activation = SineCosine()
    activation.raw_beta.data.fill_(1.3)
    h = torch.linspace(-40, 40, 100_001)[:, None]
    slope = activation.jet(h, activation.beta(), 1)[1].detach()
    torch.testing.assert_close(slope.norm(dim=1), torch.ones(len(h)), rtol=1e-14, atol=0)
    small = torch.tensor([[1e-12]])
    beta = activation.beta().detach()
    few = activation(small).detach()  # 1 - cos would be 0
    torch.testing.assert_close(few, torch.cat([small, -beta * small**2 / 2], 1), atol=0, rtol=1e-9)
