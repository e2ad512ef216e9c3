"""Branches of dense concatenation: the bound of a link as a whole, and all that branches keep."""

import itertools
import math

import pytest
import torch
from helpers import CLOSED, pairs, perturb

from iresflow.linearization import FunctionLinearization
from iresflow.lipschitz import (
    ACTIVATIONS,
    PADDINGS,
    CLipSwish,
    LipSwish,
    NormalizedDense,
    SineCosine,
    Tanh,
    chained,
    compile_kernels,
    concatenated,
    conv_branch,
    dense_branch,
    links_named,
)
from iresflow.lipschitz.bounds.induced import NORMS
from iresflow.lipschitz.layers.concatenation import Concatenated, beside
from iresflow.lipschitz.passes.chain import ChainLinearization
from iresflow.lipschitz.passes.native.library import library
from iresflow.lipschitz.passes.native.passes import NativePasses

SHAPES = {"dense": (5,), **dict.fromkeys(PADDINGS, (2, 5, 4))}


def small(kind, activation=LipSwish, activate_input=True, context_dim=0):
    settings = {
        "activation": activation,
        "coeff": 0.95,
        "activate_input": activate_input,
        "context_dim": context_dim,
        "links": concatenated,
    }
    if kind == "dense":
        return perturb(dense_branch(5, (4, 3, 6), **settings), 0.7)
    branch = conv_branch(2, 3, (5, 4), kernels=(3, 1, 3), padding=PADDINGS[kind], **settings)
    return perturb(branch, 0.7)


def jacobians(branch, x):
    """Dense ones ``(B, D, D)`` by automatic differentiation."""
    rows = torch.func.vmap(torch.func.jacrev(lambda y: branch(y[None])[0]))(x)
    return rows.reshape(len(x), x[0].numel(), -1).detach()


@pytest.mark.parametrize(
    ("kind", "activation", "activate_input"),
    pairs(list(SHAPES), [LipSwish, CLipSwish, SineCosine, Tanh], [False, True]),
)
def test_bounds_hold_and_what_is_kept_costs_nothing(kind, activation, activate_input):
    branch = small(kind, activation, activate_input)
    branch.enforce()
    x = 3 * torch.randn(20, *SHAPES[kind])
    jacobian = jacobians(branch, x)
    for p, order in ((2.0, 2), (1.0, 1), (math.inf, math.inf)):
        measured = float(torch.linalg.matrix_norm(jacobian, ord=order).max())
        assert measured <= branch.bound(p).upper
    assert measured > 0.01
    assert branch.bound().upper <= 0.95
    *links, _ = zip(branch.layers, branch.activations, strict=True)
    whole, products = [], []
    for layer, pointwise in links:
        whole.append(layer.bounds_after(pointwise)[2.0, 2.0].upper)
        products.append(layer.bound().upper * pointwise.lipschitz)
    assert max(whole) <= 1 + 1e-12
    assert math.prod(products) > 1.01 * math.prod(whole)  # what separate bounds would prove


def test_links_are_bounded_between_all_norms():
    """Of (h, h), where a link is linear: (a I, b W) stacked, whose norms are known."""
    layer = NormalizedDense(4, 3, coeff=0.9, form=Concatenated(4))
    activation = beside(None)()
    with torch.no_grad():
        layer.weight.mul_(5)
        layer.form.raw_angle.fill_(0.7)
    layer.eval().enforce()
    whole = layer.normalized_weight().detach()
    matrix = whole[:, :4] + whole[:, 4:]
    angle = math.pi / 2 / (1 + math.exp(-0.7))
    torch.testing.assert_close(matrix[:4], math.cos(angle) * torch.eye(4))
    assert torch.linalg.matrix_norm(matrix[4:], 2) <= 0.9 * math.sin(angle) + 1e-12
    norms = {
        (1.0, 1.0): matrix.abs().sum(0).max(),
        (1.0, 2.0): matrix.norm(dim=0).max(),
        (1.0, math.inf): matrix.abs().max(),
        (2.0, 2.0): torch.linalg.matrix_norm(matrix, 2),
        (2.0, math.inf): matrix.norm(dim=1).max(),
        (math.inf, math.inf): matrix.abs().sum(1).max(),
    }
    found, of_blocks = layer.bounds_after(activation), layer.bounds()
    for ends in itertools.product(NORMS, NORMS):
        if ends not in norms:
            assert found[ends].upper == of_blocks[ends].upper == math.inf
            continue
        assert float(norms[ends]) <= found[ends].upper <= 1.6 * float(norms[ends])
    blocks = torch.linalg.matrix_norm(whole, 2)
    assert float(blocks) <= of_blocks[2.0, 2.0].upper <= float(blocks) * (1 + 1e-6)
    # After another activation than a pair, the layer and it are bounded by their product.
    product = layer.bounds_after(Tanh())[2.0, 2.0]
    assert product.upper == pytest.approx(of_blocks[2.0, 2.0].upper)


@pytest.fixture(params=[False, True], ids=["by torch", "natively"])
def native(request):
    compile_kernels(request.param)
    if request.param and library() is None:
        pytest.skip("no compiler on this machine")
    yield request.param
    compile_kernels(False)


@pytest.mark.parametrize(
    ("kind", "activation", "activate_input", "context_dim"),
    pairs(list(SHAPES), [LipSwish, CLipSwish, SineCosine], [False, True], [0, 2]),
)
def test_closed_forms_are_those_of_automatic_differentiation(
    kind, activation, activate_input, context_dim, native
):
    branch = small(kind, activation, activate_input, context_dim).train(activate_input)
    for layer in branch.layers:
        layer.sharpen()
    x = torch.randn(3, *SHAPES[kind], requires_grad=True)
    context = torch.randn(3, context_dim) if context_dim else None
    w, v = torch.randn(2, 2, *x.shape)
    leaves = [x, *branch.parameters()]

    def gradients(linearization):
        loss = linearization.bilinear(w, v).square().sum() + (linearization.value**3).sum()
        return torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)

    chain = branch.chain(context, x.dtype)
    closed = chain.linearize(x)
    assert isinstance(closed, ChainLinearization)
    assert isinstance(closed._passes, NativePasses) == (native and kind in ("dense", "zeros"))
    plain = FunctionLinearization(lambda y: chain.value(y), x)
    torch.testing.assert_close(closed.jvp(v), plain.jvp(v), rtol=CLOSED, atol=CLOSED)
    torch.testing.assert_close(closed.vjp(w), plain.vjp(w), rtol=CLOSED, atol=CLOSED)
    for linearization in (closed, plain):
        linearization.lipschitz = None
    names = ["x", *(name for name, _ in branch.named_parameters())]
    ours = gradients(closed)
    for name, a, b in zip(names, ours, gradients(plain), strict=True):
        assert a is not None and b is not None, name
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    angles = [g for name, g in zip(names, ours, strict=True) if "angle" in name]
    assert len(angles) == len(branch.layers) - 1 and all(float(g.abs()) > 1e-9 for g in angles)


def derivative(y, x):
    if not y.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(y.sum(), x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_pairs_are_what_they_say(name):
    phi = None if name is None else ACTIVATIONS[name]
    assert beside(phi) is beside(phi)
    activation = beside(phi)()
    h = torch.linspace(-6, 6, 2001, requires_grad=True)[:, None]
    beta = activation.beta()
    value, slope, curvature = activation.jet(h, beta, 2)
    assert value.shape == (2001, activation.width)
    torch.testing.assert_close(value[:, :1], h)
    expected = h if phi is None else activation.inner(h)
    torch.testing.assert_close(value[:, 1:], expected)
    for column in range(activation.width):
        torch.testing.assert_close(slope[:, column : column + 1], derivative(value[:, column], h))
        expected = derivative(slope[:, column], h)
        torch.testing.assert_close(curvature[:, column : column + 1], expected)
    for p in NORMS:
        largest = float(slope.detach().norm(p, dim=1).max())
        assert largest <= activation.lipschitz_in(p) <= 1.01 * largest + 1e-9


@pytest.mark.parametrize("kind", SHAPES)
def test_float32_rounds_no_more_than_its_bound(kind):
    branch = small(kind).float().eval()
    branch.enforce()
    chain, (narrow, wide) = branch.contraction()
    assert chain.lipschitz < 1
    x, rows = 5 * torch.randn(50, *SHAPES[kind], dtype=torch.float32), torch.arange(50)
    image, rounding = narrow(x, rows)
    error = (image.double() - wide(x.double(), rows)[0]).flatten(1).norm(dim=1)
    assert bool((error <= torch.finfo(torch.float32).eps * rounding).all())
    assert float(error.max()) > 0


def test_shapes_of_branches():
    branch = dense_branch(5, (4, 3), activation=CLipSwish, coeff=0.9, links=concatenated)
    assert [tuple(layer.weight.shape) for layer in branch.layers] == [(4, 10), (3, 18), (5, 24)]
    assert [len(layer.bias) for layer in branch.layers] == [9, 12, 5]
    one = conv_branch(
        2, 3, (4, 4), kernels=(3,), activation=LipSwish, coeff=0.9, links=concatenated
    )
    assert tuple(one.layers[0].weight.shape) == (2, 2, 3, 3)
    assert links_named("concatenated") is concatenated and links_named("chained") is chained
    with pytest.raises(ValueError, match="chained, concatenated"):
        links_named("dense")
