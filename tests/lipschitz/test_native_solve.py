"""Inverses by the compiled iteration: their claims, and what is left to the driver."""

from functools import partial

import pytest
import torch
from helpers import branch_shape, expand, small_branch

import iresflow
from iresflow import Anderson, Broyden, FixedPoint, InversionError
from iresflow.bijections import Accuracy, MonotoneBlock, ResidualBlock
from iresflow.lipschitz.passes.links import evaluate
from iresflow.lipschitz.passes.rounding import fused_solve
from iresflow.solution import MixedIteration
from iresflow.solvers import solve

KINDS = ("lipswish", "clipswish", "sine-cosine", "elu")


pytestmark = pytest.mark.usefixtures("compiled")


def branch_and_target(activation, dtype, context_dim=0, batch=7):
    """A branch of images in eval mode, a context, and what is to be inverted."""
    branch = small_branch("conv", activation, context_dim).to(dtype)
    context = torch.randn(batch, context_dim, dtype=dtype) if context_dim else None
    return branch, context, 3 * torch.randn(batch, *branch_shape("conv"))


def exact(branch, context, y):
    """The solution by the plain iteration in float64, of PyTorch's own operations."""
    links = [link.detached().to(torch.float64) for link in branch.chain(context).links]
    x = y
    for _ in range(200):
        x = y - evaluate(links, x)
    return x


def fused(branch, context, y, tol, memory=5, steps=1000):
    chain, maps = branch.contraction(context)
    return fused_solve(maps, y, MixedIteration(chain.lipschitz, tol, memory, steps))


def worse_than_claimed(value, error, x):
    return int(((value.double() - x).flatten(1).norm(dim=1) > error.double()).sum())


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [0, 1, 5])
def test_no_sample_is_worse_than_claimed(activation, dtype, memory):
    branch, context, y = branch_and_target(activation, dtype, context_dim=3)
    x = exact(branch, context, y)
    for tol in (1e-2, 1e-5, 1e-9, 0.0):
        found = fused(branch, context, y, tol, memory)
        assert found.value.dtype == torch.float64
        assert worse_than_claimed(found.value, found.error, x) == 0
        assert bool((found.error <= torch.clamp(2 * found.floor, min=tol)).all())
        assert bool((found.floor < 1e-10).all())
        # Control: the same claims of values that are off by a bit more than claimed.
        moved = found.value + 2 * found.error[:, None, None, None] * (x / x)
        assert worse_than_claimed(moved, found.error, x) == len(y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [FixedPoint(), Anderson(), Anderson(memory=2)])
def test_it_does_what_the_driver_does(dtype, solver):
    branch, context, y = branch_and_target("sine-cosine", dtype)
    chain, maps = branch.contraction(context)
    for tol in (1e-3, 1e-6):
        driven = partial(solve, maps, y, lipschitz=chain.lipschitz, tol=tol, solver=solver)
        ours, theirs = driven(fused=partial(fused_solve, maps)), driven()
        distance = (ours.value - theirs.value).flatten(1).norm(dim=1)
        assert bool((distance <= ours.error + theirs.error).all())
        torch.testing.assert_close(ours.floor, theirs.floor, rtol=1e-3, atol=0)
        if dtype == torch.float64:  # in two types, the driver refines by products
            assert int((ours.steps - theirs.steps).abs().max()) <= 1
            assert float(distance.max()) <= 1e-12 or solver != FixedPoint()


def test_mixing_moves_takes_three_fifths_of_the_evaluations_of_a_trained_model():
    flow = iresflow.pretrained("mnist")
    z = flow.base.sample(4, generator=torch.Generator().manual_seed(0))
    plain, mixed = (flow.invert(z, None, Accuracy(solver=s)) for s in (FixedPoint(), Anderson()))
    assert int(mixed.steps.sum()) <= 0.6 * int(plain.steps.sum())
    assert bool((mixed.block_error <= 1e-5).all())


def test_a_sample_has_one_inverse_in_every_batch():
    branch, _, y = branch_and_target("lipswish", torch.float32)
    whole, alone = fused(branch, None, y, 1e-5), fused(branch, None, y[4:5], 1e-5)
    for name in ("value", "steps", "error", "floor"):
        assert torch.equal(getattr(whole, name)[4:5], getattr(alone, name))


@pytest.mark.parametrize("make", [ResidualBlock, MonotoneBlock])
def test_blocks_are_inverted_by_it(make, monkeypatch):
    branch, _, y = branch_and_target("lipswish", torch.float32)
    taken = []

    def watched(maps, y, iteration):
        taken.append(fused_solve(maps, y, iteration))
        return taken[-1]

    monkeypatch.setattr("iresflow.bijections.branch_block.fused_solve", watched)
    block = make(branch).eval()
    with torch.no_grad():
        back = block.transform(block.invert(y, None, Accuracy(1e-6)).value)
    assert taken and all(found is not None for found in taken)
    assert float((back - y).flatten(1).norm(dim=1).max()) <= 2e-5
    taken.clear()
    block.invert(y, None, Accuracy(1e-6, Broyden()))
    assert not [found for found in taken if found is not None] or make is MonotoneBlock


def test_what_it_can_not_certify_is_left_to_the_driver_which_says_why():
    branch, _, y = branch_and_target("lipswish", torch.float32)
    assert fused(branch, None, y, 1e-6, steps=2) is None
    with pytest.raises(InversionError, match="7 of 7 samples missed the tolerance"):
        ResidualBlock(branch).invert(y, None, Accuracy(1e-6, Anderson(max_steps=2)))
    y[3] = 1e39  # beyond float32
    assert fused(branch, None, y, 1e-6) is None
    dense = small_branch("dense")
    assert fused(dense, None, torch.randn(4, 5), 1e-6) is None
    circular = small_branch("circular")
    assert fused(circular, None, torch.randn(4, 2, 5, 4), 1e-6) is None


def test_a_lipschitz_bound_that_is_false_is_found_out():
    branch, _, y = branch_and_target("elu", torch.float64)
    chain, maps = expand(branch, 30).contraction()
    iteration = MixedIteration(0.9, 1e-6, 5, 1000)
    assert chain.lipschitz > 1
    assert fused_solve(maps, y, iteration) is None
    with pytest.raises(InversionError, match="the map is no contraction"):
        solve(
            maps,
            y,
            lipschitz=0.9,
            tol=1e-6,
            solver=Anderson(),
            fused=partial(fused_solve, maps),
        )
