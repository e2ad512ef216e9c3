"""Gradients through a solve, against unrolled iterations, finite differences and gradcheck."""

import pytest
import torch
from helpers import branch_shape, small_branch, small_image_flow, small_vector_flow

from iresflow import InversionError
from iresflow.bijections import Accuracy, ResidualBlock
from iresflow.linearization import FunctionLinearization
from iresflow.solvers import FixedPoint, attach

GRADIENT = 1e-7
"""Tolerance of a gradient at a point that is solved to 1e-10."""

KINDS = ["dense", "conv"]
TIGHT = Accuracy(1e-10)


def case(kind, batch=3):
    block = ResidualBlock(small_branch(kind, context_dim=2))
    y = torch.randn(batch, *branch_shape(kind), requires_grad=True)
    return block, y, torch.randn(batch, 2, requires_grad=True)


def unrolled(block, y, context, steps=400):
    """The fixed-point iteration, all of it recorded by autograd."""
    x = y
    for _ in range(steps):
        x = y - block.branch(x, context)
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_those_of_the_unrolled_iteration(kind):
    """With upstream gradients that differ from sample to sample, one of them 0, one huge."""
    block, y, context = case(kind)
    upstream = torch.randn_like(y) * torch.tensor([1.0, 0.0, 1e6]).reshape(-1, *[1] * (y.ndim - 1))
    leaves = [y, context, *block.parameters()]
    ours = torch.autograd.grad(block.invert(y, context, TIGHT).value, leaves, upstream)
    theirs = torch.autograd.grad(unrolled(block, y, context), leaves, upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=GRADIENT, atol=GRADIENT * float(b.abs().max()))
    assert float(ours[0][1].abs().max()) == 0 and float(ours[0][0].abs().max()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_in_the_point_and_the_context(kind):
    block, y, context = case(kind, batch=2)
    assert torch.autograd.gradcheck(
        lambda y, c: block.invert(y, c, TIGHT).value,
        (y, context),
        atol=1e-4,
        eps=1e-5,
        fast_mode=kind == "conv",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_in_each_parameter_agrees_with_finite_differences(kind):
    block, y, context = case(kind)
    weights = torch.randn_like(y)

    def loss():
        return (block.invert(y, context, TIGHT).value * weights).sum()

    names, parameters = zip(*block.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(), parameters)
    assert any("raw_beta" in name for name in names)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(loss())
                parameter.sub_(step * direction)
        difference = float(values[0] - values[1]) / 2e-4
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-4, abs=1e-5)


FLOWS = {
    "vector-conditional": lambda: small_vector_flow(context_dim=2),
    "image-factored": lambda: small_image_flow(blocks=(1, 1), factor_out=True),
    "image-conditional": lambda: small_image_flow(blocks=(0, 1), context_dim=2),
}


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_a_flow_is_differentiable_in_latent_context_and_every_parameter(name):
    flow = FLOWS[name]()
    z = torch.randn(3, flow.base_dim, requires_grad=True)
    context = torch.randn(3, 2, requires_grad=True) if flow.context_dim else None
    named = [(n, p) for n, p in flow.named_parameters() if not n.startswith("base.")]
    leaves = [z, *(p for _, p in named), *([] if context is None else [context])]
    weights = torch.randn(3, *flow.shape)

    def loss():
        return (flow.invert(z, context, TIGHT).value * weights).sum()

    gradients = torch.autograd.grad(loss(), leaves)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(step * direction)
            values.append(float(loss()))
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.sub_(step * direction)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-5)
    assert all(float(g.abs().max()) > 0 for g in gradients)


def test_training_mode_differentiates_the_normalisation_too():
    """One step of the power iteration serves the solve and its gradient."""
    block, y, context = case("dense")
    block.train()
    for _ in range(30):  # the iteration's vectors settle
        block.invert(y, context, TIGHT)
    x = block.invert(y, context, TIGHT).value
    parameters = list(block.parameters())
    ours = torch.autograd.grad(x.sum(), parameters)
    x = block.invert(y, context, TIGHT).value.detach()
    theirs = torch.autograd.grad(unrolled(block, y, context, 120).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # the stored norms are those that the solve was made with
        torch.testing.assert_close(block.transform(x, context), y, rtol=1e-9, atol=1e-9)


def test_a_float32_model_has_the_gradients_of_float64():
    block, y, context = case("dense")
    block.float()
    expected = torch.autograd.grad(
        unrolled(block.double(), y, context).sum(), [y, *block.parameters()]
    )
    block.float()
    for z in (y, y.float()):
        x = block.invert(z, context.float()).value
        assert x.dtype == z.dtype
        ours = torch.autograd.grad(x.sum(), [y, *block.parameters()])
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=2e-4)


def test_nothing_is_recorded_without_gradients():
    block, y, context = case("dense")
    with torch.no_grad():
        assert not block.invert(y, context).value.requires_grad
    flow = small_vector_flow()
    assert not flow.sample(3).requires_grad
    assert flow.inverse(torch.randn(3, 3)).requires_grad


def test_a_gradient_that_can_not_be_solved_fails_loudly():
    """The backward pass has its own equation, with its own steps and bound."""
    point = torch.randn(4, 3)
    y = torch.randn(4, 3, requires_grad=True)
    slow = FunctionLinearization(lambda p: 0.99 * p, point)
    x = attach(point, y, slow, lipschitz=0.99, solver=FixedPoint(5), context="block a.b")
    with pytest.raises(InversionError, match=r"the gradient of block a\.b"):
        x.sum().backward()
    expansive = FunctionLinearization(lambda p: -2 * p, point)
    x = attach(point, y, expansive, lipschitz=0.9, solver=FixedPoint(), context="block a.b")
    with pytest.raises(InversionError, match="no contraction"):
        x.sum().backward()
    x = attach(point, y, slow, lipschitz=0.99, solver=FixedPoint(5000))
    with pytest.raises(InversionError, match="not finite"):
        (x * torch.nan).sum().backward()
