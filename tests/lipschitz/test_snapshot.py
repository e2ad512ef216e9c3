import copy

import pytest
import torch
from helpers import CLOSED, branch_shape, small_branch

from iresflow.lipschitz import ACTIVATIONS
from iresflow.lipschitz.passes import snapshot as snapshots

KINDS = ["conv", "dense"]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluator_agrees_for_a_part_of_the_batch(kind):
    branch = small_branch(kind, context_dim=3)
    x, context = torch.randn(5, *branch_shape(kind)), torch.randn(5, 3)
    index = torch.tensor([3, 1])
    snapshot = branch.snapshot(context)
    part, rounding = snapshot.evaluator(torch.float64)(x[index], index)
    assert rounding.shape == (2,)
    torch.testing.assert_close(part, branch(x, context)[index].detach(), rtol=CLOSED, atol=CLOSED)
    linearization = snapshot.linearize(x[index], index)
    torch.testing.assert_close(linearization.value, part, rtol=CLOSED, atol=CLOSED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_rounding_bound_holds_in_float32(kind, activation, size):
    branch = copy.deepcopy(small_branch(kind, activation)).float()
    snapshot = branch.snapshot()
    x = (size * torch.randn(200, *branch_shape(kind))).float()
    index = torch.arange(200)
    single, rounding = snapshot.evaluator(torch.float32)(x, index)
    double, _ = snapshot.evaluator(torch.float64)(x.double(), index)
    assert double.dtype == torch.float64
    error = (single.double() - double).flatten(1).norm(dim=1)
    eps = torch.finfo(torch.float32).eps
    assert bool((error <= eps * rounding.double()).all())
    assert float(error.max()) > 0  # the two types do differ


def test_rounding_bound_follows_the_layers_that_amplify():
    """Hidden values of thousands round g by far more than its own size tells."""
    branch = small_branch("dense").float()
    with torch.no_grad():
        branch.layers[0].bias.fill_(3000.0)
    x, index = torch.randn(100, 5, dtype=torch.float32), torch.arange(100)
    snapshot = branch.snapshot()
    single, rounding = snapshot.evaluator(torch.float32)(x, index)
    double, _ = snapshot.evaluator(torch.float64)(x.double(), index)
    error = (single.double() - double).norm(dim=1)
    eps = torch.finfo(torch.float32).eps
    assert bool((error <= eps * rounding.double()).all())


def test_weights_keep_their_numbers_in_a_wider_type():
    branch = small_branch("dense").float()
    x = torch.randn(4, 5)
    wide, _ = branch.snapshot().evaluator(torch.float64)(x, torch.arange(4))
    torch.testing.assert_close(wide, branch(x).detach(), rtol=1e-14, atol=1e-14)


def test_a_snapshot_in_training_is_of_one_set_of_weights():
    branch = small_branch("dense").train()
    with torch.no_grad():
        for layer in branch.layers:
            layer.weight.add_(0.3 * torch.randn_like(layer.weight))
    x = torch.randn(4, 5)
    snapshot = branch.snapshot()  # moves the power iteration
    sigma = [layer.sigma.clone() for layer in branch.layers]
    value, _ = snapshot.evaluator(torch.float64)(x, torch.arange(4))
    torch.testing.assert_close(value, snapshot.linearize(x).value.detach(), rtol=1e-12, atol=0)
    assert all(torch.equal(a, b.sigma) for a, b in zip(sigma, branch.layers, strict=True))
    assert snapshot.lipschitz == branch.bound().upper
    with torch.no_grad():
        torch.testing.assert_close(value, branch(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_in_pieces_is_the_same(kind, monkeypatch):
    """With a context, whose rows and rounding bounds follow the samples."""
    branch = small_branch(kind, context_dim=3)
    x, index = torch.randn(7, *branch_shape(kind)), torch.randperm(9)[:7]
    evaluate = branch.snapshot(torch.randn(9, 3)).evaluator(torch.float64)
    whole = evaluate(x, index)
    monkeypatch.setattr(snapshots, "CACHED", {torch.float64: 1000})
    for a, b in zip(evaluate(x, index), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert len(set(whole[1].tolist())) == 7


def test_lipswish_is_folded_into_the_weights():
    """With slopes of its own in each layer, up to such as can't be folded."""
    for raw in (0.5, 3.0, -6.0, -12.0):
        branch = small_branch("conv")
        with torch.no_grad():
            for factor, activation in enumerate(branch.activations, 1):
                activation.raw_beta.fill_(raw / factor)
        x = torch.randn(4, *branch_shape("conv"))
        ours, _ = branch.snapshot().evaluator(torch.float64)(x, torch.arange(4))
        torch.testing.assert_close(ours, branch(x).detach(), rtol=1e-12, atol=1e-12)
