import copy
import math

import pytest
import torch
from layers_of_torch import draw, matrix_of, spectral
from torch import nn
from torch.nn.utils import parametrize

from iresflow import DerivativeError, NotContractiveError, constrain, norm_bound
from iresflow.lipschitz import Certified

# What PyTorch says of its own speed.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def conv(**options):
    module = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False, **options)
    module.weight.data *= 5
    return module


def raw(module):
    return module.parametrizations.weight.original


@pytest.mark.parametrize("seed", range(60))
def test_in_eval_mode_the_norm_of_any_layer_is_certified(seed):
    module, size, channels = draw(seed)
    nn.init.normal_(module.weight)
    try:
        before = spectral(matrix_of(module, size, channels))
    except RuntimeError:
        with pytest.raises(ValueError, match="on inputs of size"):
            constrain(module, 0.9, size)
        return
    constrain(module, 0.7 * before, size).eval()
    after = spectral(matrix_of(module, size, channels))
    assert after <= norm_bound(module, size).upper <= 0.7 * before
    assert after >= 0.7 * before * (1 - 1e-3)
    # A limit that the weight keeps already changes nothing.
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    constrain(module, 1.01 * before, size).eval()
    assert torch.equal(module.weight, raw(module))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("coeff", [0.9, 1.0, 1e-3])
def test_the_certificate_is_of_rounded_weights(dtype, mode, coeff):
    module = constrain(conv(padding_mode=mode).to(dtype), coeff, (8, 8)).eval()
    exact = conv(padding_mode=mode)
    exact.weight.data = module.weight.detach().double()
    norm = spectral(matrix_of(exact, (8, 8), 3))
    assert norm <= norm_bound(module, 8).upper <= coeff
    assert norm >= coeff * (1 - 4 * torch.finfo(dtype).eps - 1e-3)


def test_training_divides_by_an_estimate_that_moves_on_with_each_step():
    module = constrain(conv(), 0.9, (6, 6))
    limit = module.parametrizations.weight[0]
    x = torch.randn(2, 3, 6, 6)
    nn.init.normal_(raw(module), std=3)
    cold = spectral(matrix_of(module, (6, 6), 3))
    left = limit.left.clone()
    with torch.no_grad():
        module(x)
    assert torch.equal(limit.left, left)
    for _ in range(100):
        module(x)
    assert not torch.equal(limit.left, left)
    assert 0.9 * (1 - 1e-9) <= spectral(matrix_of(module, (6, 6), 3)) <= 0.9 * (1 + 1e-9) < cold


def test_certified_training_is_below_the_limit_in_each_step():
    module = constrain(conv(padding_mode="circular"), 0.9, (6, 6), Certified())
    for _ in range(3):
        nn.init.normal_(raw(module), std=3)
        norm = spectral(matrix_of(module, (6, 6), 3))
        assert 0.9 * (1 - 1e-9) <= norm <= 0.9


@pytest.mark.parametrize("normalization", [None, Certified()])
@pytest.mark.parametrize("kind", ["conv", "transposed", "linear"])
def test_gradients_are_those_of_the_normalised_weight(kind, normalization):
    module, size, channels = {
        "conv": (conv(padding_mode="reflect"), (5, 4), 3),
        "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2, bias=False), (3, 4), 2),
        "linear": (nn.Linear(4, 5, bias=False), (), 4),
    }[kind]
    plain = copy.deepcopy(module)
    constrain(module, 0.3, size or None, normalization)
    for _ in range(300):
        module.weight  # noqa: B018  the estimate converges
    weights = torch.randn_like(module.weight)
    (gradient,) = torch.autograd.grad((module.weight * weights).sum(), raw(module))

    def value(weight):
        if normalization is not None:
            norm = module.parametrizations.weight[0].family.smooth_bound(weight)
        else:
            plain.weight.data = weight
            norm = spectral(matrix_of(plain, size, channels))
        return float((weight * weights).sum() * 0.3 / norm)

    weight = raw(module).detach()
    direction = torch.randn_like(weight)
    change = value(weight + 1e-5 * direction) - value(weight - 1e-5 * direction)
    assert float((gradient * direction).sum()) == pytest.approx(change / 2e-5, rel=1e-5)


def test_in_eval_mode_gradients_take_the_norm_as_a_constant():
    module = constrain(conv(), 0.9, (6, 6)).eval()
    weights = torch.randn_like(module.weight)
    (gradient,) = torch.autograd.grad((module.weight * weights).sum(), raw(module))
    torch.testing.assert_close(gradient, weights * (module.weight / raw(module)).mean())
    inner = torch.func.grad(
        lambda w: (torch.func.functional_call(module, {_raw: w}, _x()) ** 2).sum()
    )(raw(module).detach())
    (outer,) = torch.autograd.grad((module(_x()) ** 2).sum(), raw(module))
    torch.testing.assert_close(inner, outer)


_raw = "parametrizations.weight.original"


def _x():
    return torch.ones(1, 3, 6, 6)


def test_state_copies_and_removal():
    module = constrain(conv(), 0.9, (6, 6))
    module(_x()).sum().backward()
    assert set(module.state_dict()) == {_raw, "parametrizations.weight.0.left"}
    other = constrain(conv(), 0.9, (6, 6))
    other.eval().weight  # noqa: B018  of weights that are replaced
    other.load_state_dict(module.state_dict())
    clone = copy.deepcopy(module)
    module.eval()
    for one in (other, clone):
        one.eval()
        assert torch.equal(one.weight, module.weight)
    # A copy is one of its own, also after its norm is known.
    clone = copy.deepcopy(module)
    raw(clone).data *= -3
    assert norm_bound(clone, 6).upper <= 0.9 and not torch.equal(clone.weight, module.weight)
    single = copy.deepcopy(module).float()
    assert norm_bound(single, 6).upper <= 0.9
    weight = module.weight.detach().clone()
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is nn.Conv2d and torch.equal(module.weight, weight)
    assert norm_bound(module, 6).upper <= 0.9


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_critic_is_certified_after_training(optimizer):
    critic = nn.Sequential(
        constrain(nn.Conv2d(1, 8, 4, stride=2, padding=1), 1.0, (8, 8)),
        nn.LeakyReLU(0.2),
        constrain(nn.Conv2d(8, 8, 3, padding=1, groups=2, padding_mode="replicate"), 1.0, (4, 4)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        constrain(nn.Linear(128, 1), 1.0),
    )
    optimise = optimizer(critic.parameters(), lr=0.3)
    real, fake = torch.randn(16, 1, 8, 8) + 0.3, torch.randn(16, 1, 8, 8)
    before = [raw(critic[i]).detach().clone() for i in (0, 2, 5)]
    gaps = []
    for _ in range(10):
        mixed = (0.5 * (real + fake)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        gap = critic(real).mean() - critic(fake).mean()
        loss = 0.1 * (slope.flatten(1).norm(dim=1) - 1).square().mean() - gap
        optimise.zero_grad()
        loss.backward()
        optimise.step()
        gaps.append(gap.item())
    assert gaps[-1] > gaps[0]
    critic.eval()
    for i, size, old in zip((0, 2, 5), ((8, 8), (4, 4), None), before, strict=True):
        assert not torch.equal(raw(critic[i]), old)
        assert norm_bound(critic[i], size).upper <= 1.0
    x = torch.randn(20, 1, 8, 8)
    slopes = torch.func.vmap(torch.func.grad(lambda x: critic(x[None]).squeeze()))(x)
    assert slopes.flatten(1).norm(dim=1).max().item() <= 1.0
    assert (critic(real) - critic(fake)).norm() <= (real - fake).norm()


def test_an_implicit_layer_stays_a_contraction():
    inner = constrain(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), 0.8, (5, 5))
    optimise = torch.optim.SGD(inner.parameters(), lr=1.0)
    x = torch.randn(3, 2, 5, 5)

    def equilibrium(steps):
        z = torch.zeros_like(x)
        with torch.no_grad(), parametrize.cached():
            for _ in range(steps):
                z = torch.tanh(inner(z) + x)
        return torch.tanh(inner(z) + x)  # its gradient at first order

    for _ in range(3):
        optimise.zero_grad()
        (equilibrium(50) - 1).square().sum().backward()
        optimise.step()
    inner.eval()
    far = math.sqrt(x.numel())
    with torch.no_grad():
        for steps in (5, 20):
            distance = float((equilibrium(steps) - equilibrium(200)).norm())
            assert distance <= 0.8 ** (steps + 1) * far


def test_what_cannot_be_constrained_is_refused():
    for coeff in (0, -1.0, math.inf, math.nan, "0.9"):
        with pytest.raises(ValueError, match=f"coeff must be positive and finite, got {coeff}"):
            constrain(conv(), coeff, (6, 6))
    with pytest.raises(ValueError, match="no bound is known of Sequential"):
        constrain(nn.Sequential(conv()), 0.9, (6, 6))
    with pytest.raises(ValueError, match="has a limit of its norm already"):
        constrain(constrain(conv(), 0.9, (6, 6)), 0.8, (6, 6))
    broken = conv()
    broken.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        constrain(broken, 0.9, (6, 6))


def test_a_weight_that_breaks_later_is_not_masked():
    module = constrain(conv(), 0.9, (6, 6))
    raw(module).data[0, 0, 0, 0] = math.nan
    assert module(_x()).isnan().any()
    with pytest.raises(ValueError, match="NaN or infinite"):
        module.eval()(_x())


def test_second_derivatives_through_the_estimate_are_refused():
    module = constrain(conv(), 0.9, (6, 6))
    loss = module(_x()).square().sum()
    with pytest.raises(DerivativeError):
        torch.autograd.grad(loss, raw(module), create_graph=True)


def test_a_type_that_cannot_hold_the_limit_is_told():
    module = constrain(nn.Linear(2, 2).to(torch.float16), 1e-9).eval()
    raw(module).data.fill_(1.0)
    with torch.no_grad():
        weight = module.weight
    assert norm_bound(module).upper <= 1e-9 and weight.dtype == torch.float16


def test_the_limit_composes_with_other_parametrizations():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    module.parametrizations.weight.original0.data *= 10
    constrain(module, 0.9).eval()
    assert 0.89 <= norm_bound(module).upper <= 0.9
    module.parametrizations.weight.original0.data *= 10
    assert 0.89 <= norm_bound(module).upper <= 0.9


def test_a_limit_that_rounding_keeps_from_being_met_is_told(monkeypatch):
    monkeypatch.setattr("iresflow.lipschitz.constraint.TRIES", 1)
    module = constrain(nn.Linear(3, 3), 0.1).eval()
    with pytest.raises(NotContractiveError, match="could not be brought to 0.1"):
        module(torch.ones(1, 3))
