import copy

import pytest
import torch
from helpers import CLOSED, branch_shape, small_branch, symmetric_branch

from iresflow.lipschitz import ACTIVATIONS, compile_kernels
from iresflow.lipschitz.passes.rounding import RoundedChain

KINDS = ["conv", "dense"]


def rounded(branch, dtype=torch.float64, context=None):
    norms = [layer.bound().upper for layer in branch.layers]
    return RoundedChain(branch.chain(context), norms, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_batch_has_its_own_context(kind):
    branch = small_branch(kind, context_dim=3)
    x, context = torch.randn(5, *branch_shape(kind)), torch.randn(5, 3)
    index = torch.tensor([3, 1])
    g = rounded(branch, context=context)
    g(x, torch.arange(5))
    part, rounding = g(x[index], index)
    assert rounding.shape == (2,)
    torch.testing.assert_close(part, branch(x, context)[index].detach(), rtol=CLOSED, atol=CLOSED)
    v = torch.randn(1, *x.shape)
    whole = branch.linearize(x, context).jvp(v)[:, index]
    ours = g.jacobian(x[index], index).jvp(v[:, index])
    torch.testing.assert_close(ours, whole, rtol=CLOSED, atol=CLOSED)
    assert len(set(g(x, torch.arange(5))[1].tolist())) == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("native", [False, True])
def test_rounding_bound_holds_in_float32(kind, activation, size, native):
    compile_kernels(native)
    branch = copy.deepcopy(small_branch(kind, activation)).float()
    x = (size * torch.randn(200, *branch_shape(kind))).float()
    index = torch.arange(200)
    single, rounding = rounded(branch, torch.float32)(x, index)
    double, _ = rounded(branch, torch.float64)(x.double(), index)
    assert double.dtype == torch.float64
    error = (single.double() - double).flatten(1).norm(dim=1)
    eps = torch.finfo(torch.float32).eps
    assert bool((error <= eps * rounding.double()).all())
    assert float(error.max()) > 0  # the two types do differ


@pytest.mark.parametrize("kind", [*KINDS, "circular"])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_rounding_bound_holds_for_a_layer_and_its_transpose(kind, size):
    branch = symmetric_branch(kind).float()
    x, index = (size * torch.randn(200, *branch_shape(kind))).float(), torch.arange(200)
    single, rounding = rounded(branch, torch.float32)(x, index)
    double, _ = rounded(branch, torch.float64)(x.double(), index)
    error = (single.double() - double).flatten(1).norm(dim=1)
    eps = torch.finfo(torch.float32).eps
    assert bool((error <= eps * rounding.double()).all())
    assert float(error.max()) > 0


def test_rounding_bound_follows_the_layers_that_amplify():
    """Hidden values of thousands round g by far more than its own size tells."""
    branch = small_branch("dense").float()
    with torch.no_grad():
        branch.layers[0].bias.fill_(3000.0)
    x, index = torch.randn(100, 5, dtype=torch.float32), torch.arange(100)
    single, rounding = rounded(branch, torch.float32)(x, index)
    double, _ = rounded(branch, torch.float64)(x.double(), index)
    error = (single.double() - double).norm(dim=1)
    eps = torch.finfo(torch.float32).eps
    assert bool((error <= eps * rounding.double()).all())


def test_weights_keep_their_numbers_in_a_wider_type():
    branch = small_branch("dense").float()
    x = torch.randn(4, 5)
    wide, _ = rounded(branch)(x, torch.arange(4))
    torch.testing.assert_close(wide, branch(x).detach(), rtol=1e-14, atol=1e-14)


def test_a_contraction_in_training_is_of_one_set_of_weights():
    branch = small_branch("dense").train()
    with torch.no_grad():
        for layer in branch.layers:
            layer.weight.add_(0.3 * torch.randn_like(layer.weight))
    x = torch.randn(4, 5)
    chain, (g,) = branch.contraction()
    value, _ = g(x, torch.arange(4))
    torch.testing.assert_close(value, chain.linearize(x).value.detach(), rtol=1e-12, atol=0)
    assert chain.lipschitz is not None and chain.lipschitz < 1
