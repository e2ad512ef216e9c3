"""Contexts that are images: shifts for each pixel of the hidden layers."""

import copy

import pytest
import torch
from helpers import CLOSED, branch_shape, dense_jacobian, small_branch

from iresflow.linearization import FunctionLinearization
from iresflow.lipschitz import compile_kernels
from iresflow.lipschitz.layers.image_context import ImageShift, context_channels, resampled
from iresflow.lipschitz.passes.choice import native_passes
from iresflow.lipschitz.passes.rounding import RoundedChain

SHAPES = {"as large": (3, 5, 4), "twice as large": (2, 10, 8)}


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def native(request):
    compile_kernels(request.param)
    yield request.param
    compile_kernels(False)


def inputs(name, batch=5):
    branch = small_branch("conv", context_dim=SHAPES[name])
    x = torch.randn(batch, *branch_shape("conv"), requires_grad=True)
    return branch, x, torch.randn(batch, *SHAPES[name], requires_grad=True)


def test_resampled_contexts_hold_all_that_was_there():
    context = torch.arange(96.0).view(1, 2, 6, 8)
    squeezed = resampled(context, (3, 4))
    assert squeezed.shape == (1, 8, 3, 4)
    assert squeezed[0, :, 1, 2].tolist() == [20, 21, 28, 29, 68, 69, 76, 77]
    larger = resampled(context, (18, 24))
    torch.testing.assert_close(larger[:, :, 1::3, 2::3], context)
    assert float((larger[:, :, ::3, ::3] - context).abs().max()) == 0
    assert [context_channels((2, 6, 8), size) for size in ((3, 4), (6, 8), (18, 24))] == [8, 2, 2]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shift_is_a_convolution_of_the_context(name):
    shift = ImageShift(SHAPES[name], (5, 4), 7)
    context = torch.randn(3, *SHAPES[name])
    image = resampled(context, (5, 4))
    kernel = shift.matrix.weight.view(7, image.shape[1], 3, 3)
    expected = torch.nn.functional.conv2d(image, kernel, padding=1)
    torch.testing.assert_close(shift(context), expected)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shift_acts_on_each_pixel_of_the_hidden_layers(name, native):
    branch, x, context = inputs(name)
    hidden, shifts = x, branch.shift(context).split([6, 6], dim=1)
    for i, (phi, layer) in enumerate(zip(branch.activations, branch.layers, strict=True)):
        hidden = layer(phi(hidden)) + (shifts[i] if i < 2 else 0)
    with torch.no_grad():
        torch.testing.assert_close(branch(x, context), hidden, rtol=CLOSED, atol=CLOSED)
    other = branch(x, context.roll(1, dims=3))
    assert float((other - hidden).abs().detach().max()) > 1e-3


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_products_and_gradients_are_those_of_autograd(name, native, recompute):
    branch, x, context = inputs(name)
    branch.recompute = recompute
    w, v = torch.randn(2, 2, *x.shape)
    linearization = branch.linearize(x, context)
    assert (native_passes(branch.chain(context).links, x) is not None) == native
    jacobian = dense_jacobian(lambda y: branch(y, context), x)
    jvp = torch.einsum("bij,kbj->kbi", jacobian, v.flatten(2))
    torch.testing.assert_close(linearization.jvp(v).flatten(2), jvp, rtol=CLOSED, atol=CLOSED)
    leaves = [x, context, *branch.parameters()]

    def gradients(linearization):
        form = linearization.bilinear(w, v)
        return torch.autograd.grad((linearization.value**3).sum() + form.square().sum(), leaves)

    expected = gradients(FunctionLinearization(lambda y: branch(y, context), x))
    for a, b in zip(gradients(linearization), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SHAPES)
def test_samples_keep_their_contexts_and_the_bound_of_rounding_holds(name, native):
    branch, x, context = inputs(name, 40)
    branch, x = copy.deepcopy(branch).float(), x.detach().float()
    context = 3 * context.detach().float()
    index = torch.tensor([3, 1, 30])
    norms = [layer.bound().upper for layer in branch.layers]
    single, double = (
        RoundedChain(branch.chain(context), norms, t) for t in (torch.float32, torch.float64)
    )
    exact, _ = double(x.double(), torch.arange(40))
    found, rounding = single(x[index], index)
    error = (found - exact[index]).flatten(1).norm(dim=1)
    allowed = torch.finfo(torch.float32).eps * rounding.double()
    assert bool((error <= allowed).all()) and float(error.max()) > 0
    assert float(allowed.max()) < 1e-2
    other, _ = single(x[index], index.flip(0))
    assert float((other - exact[index]).abs().amax((1, 2, 3))[0]) > 10 * float(allowed.max())


def test_the_bound_holds_with_every_context():
    branch, x, context = inputs("as large")
    bound = branch.bound().upper
    for size in (0.0, 1.0, 100.0):
        jacobian = dense_jacobian(lambda y, s=size: branch(y, s * context), x)
        assert float(torch.linalg.matrix_norm(jacobian, 2).max()) <= bound < 1


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 10, 4), (3, 7, 6), (5, 4), (0, 5, 4), (3, 1, 1)])
def test_contexts_of_a_size_that_fits_no_whole_number_are_refused(shape):
    with pytest.raises(ValueError, match=r"image of 5 x 4 pixels .* got \("):
        small_branch("conv", context_dim=shape)
