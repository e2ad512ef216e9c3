import copy

import pytest
import torch
from helpers import CLOSED, materialize

from iresflow.lipschitz import (
    NORMALIZATIONS,
    CircularPadding,
    NormalizedConv2d,
    NormalizedDense,
    ReflectPadding,
)

LAYERS = {
    "dense": (lambda **limits: NormalizedDense(5, 7, **limits), (5,)),
    "pointwise": (lambda **limits: NormalizedConv2d(3, 4, 1, (5, 4), **limits), (3, 5, 4)),
    "conv": (lambda **limits: NormalizedConv2d(3, 4, 3, (5, 4), **limits), (3, 5, 4)),
    "strided": (
        lambda **limits: NormalizedConv2d(3, 4, 3, (5, 4), stride=2, **limits),
        (3, 5, 4),
    ),
    "circular": (
        lambda **limits: NormalizedConv2d(3, 4, 3, (5, 4), padding=CircularPadding(), **limits),
        (3, 5, 4),
    ),
    "reflect": (
        lambda **limits: NormalizedConv2d(3, 4, 3, (5, 4), padding=ReflectPadding(), **limits),
        (3, 5, 4),
    ),
}


@pytest.fixture(params=sorted(LAYERS))
def kind(request):
    return request.param


@pytest.fixture(params=sorted(NORMALIZATIONS))
def normalization(request):
    return NORMALIZATIONS[request.param]


@pytest.fixture
def layer_and_shape(kind, normalization):
    make, shape = LAYERS[kind]
    layer = make(coeff=0.9, normalization=normalization)
    with torch.no_grad():
        layer.weight.mul_(3)  # well above the coefficient, so that normalisation acts
    return layer, shape


def norm_in_action(layer, shape):
    weight = layer.normalized_weight().detach()
    return float(torch.linalg.matrix_norm(materialize(layer.operator(weight), shape), ord=2))


def test_adjoint_is_the_transpose(layer_and_shape):
    layer, shape = layer_and_shape
    weight = layer.weight.detach()
    matrix = materialize(layer.operator(weight), shape)
    image_shape = layer.operator(weight)(torch.zeros(1, *shape)).shape[1:]
    adjoint = materialize(layer.adjoint(weight), tuple(image_shape))
    torch.testing.assert_close(adjoint, matrix.mT, rtol=CLOSED, atol=CLOSED)


def test_weight_gradient_agrees_with_autograd(layer_and_shape):
    layer, shape = layer_and_shape
    x = torch.randn(3, *shape)
    image = layer.operator(layer.weight)(x)
    u = torch.randn_like(image)
    (expected,) = torch.autograd.grad((image * u).sum(), layer.weight)
    torch.testing.assert_close(layer.weight_gradient(x, u), expected, rtol=CLOSED, atol=CLOSED)


def test_power_iteration_holds_the_norm_at_the_coefficient(kind):
    make, shape = LAYERS[kind]
    layer = make(coeff=0.9)
    with torch.no_grad():
        layer.weight.mul_(3)
    for _ in range(60):  # five warm-started iterations each, as in training
        layer.train().normalize()
    assert norm_in_action(layer, shape) == pytest.approx(0.9, rel=1e-6)
    assert norm_in_action(layer.eval(), shape) == pytest.approx(0.9, rel=1e-6)


def test_certified_normalization_holds_from_the_first_step(kind):
    make, shape = LAYERS[kind]
    layer = make(coeff=0.9, normalization=NORMALIZATIONS["certified"])
    for _ in range(5):
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
        layer.train().normalize()
        assert norm_in_action(layer, shape) <= 0.9 * (1 + 1e-12)
        # Looser where the bound by the DFT is: few pixels, rows dropped by the stride, mirrors.
        assert norm_in_action(layer, shape) > {"strided": 0.5, "reflect": 0.3}.get(kind, 0.7)
    assert layer.eval().bound().upper <= 0.9 * (1 + 1e-9)


def test_certified_norms_have_the_gradient_of_the_norm(kind):
    layer = LAYERS[kind][0](coeff=0.9)
    direction = torch.randn_like(layer.weight)
    (gradient,) = torch.autograd.grad(layer.smooth_bound(layer.weight), layer.weight)
    step = 1e-6
    with torch.no_grad():
        ahead = layer.smooth_bound(layer.weight + step * direction)
        behind = layer.smooth_bound(layer.weight - step * direction)
    slope = float((ahead - behind) / (2 * step))
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_enforce_does_not_keep_a_norm_that_is_too_large(layer_and_shape):
    layer, shape = layer_and_shape
    layer.eval().enforce()
    before = norm_in_action(layer, shape)
    layer.sigma.mul_(1.3)  # as the norm of other weights would be
    layer.enforce()
    assert norm_in_action(layer, shape) == pytest.approx(before, rel=1e-9)


def test_small_weights_are_left_alone(layer_and_shape):
    layer, _ = layer_and_shape
    with torch.no_grad():
        layer.weight.mul_(1e-3)
    layer.settle()
    torch.testing.assert_close(layer.normalized_weight(), layer.weight, rtol=0, atol=0)


def test_enforce_makes_the_certified_bound_hold(layer_and_shape):
    layer, shape = layer_and_shape
    layer.eval().settle()
    layer.sigma.mul_(0.4)  # an estimate that is much too low
    assert layer.bound().upper > 1
    layer.enforce()
    bound = layer.bound()
    assert norm_in_action(layer, shape) <= bound.upper <= 0.9


def test_enforce_leaves_the_raw_weight_alone(layer_and_shape):
    layer, _ = layer_and_shape
    before = layer.weight.detach().clone()
    layer.eval().enforce()
    assert torch.equal(layer.weight, before)


def test_bound_notices_a_write_through_data(layer_and_shape):
    layer, shape = layer_and_shape
    layer.eval().enforce()
    held, raw = layer.bound(), layer.tight_bound(layer.weight, layer.left)
    layer.weight.data.mul_(2)
    # Eval mode divides by what it did, and the bound is that of the weight that acts.
    assert layer.bound() is not held
    assert layer.bound().upper == pytest.approx(2 * held.upper, rel=1e-3)
    layer.train().eval()
    assert layer.bound().upper == pytest.approx(held.upper, rel=1e-3)
    assert norm_in_action(layer, shape) <= layer.bound().upper
    assert layer.tight_bound(layer.weight, layer.left).upper == pytest.approx(2 * raw.upper)


def test_gradient_flows_through_the_norm(layer_and_shape):
    layer, shape = layer_and_shape
    for _ in range(200):
        layer.train().normalize()
    x = torch.randn(2, *shape)
    # Along its own direction a normalised weight does not move: the product is scale-free.
    layer(x).square().sum().backward()
    along = float((layer.weight.grad * layer.weight).sum().detach())
    assert abs(along) < 1e-6 * float(layer.weight.grad.norm() * layer.weight.detach().norm())


def test_state_loads_into_a_fresh_layer_before_any_forward_pass(layer_and_shape):
    layer, shape = layer_and_shape
    layer.eval().enforce()
    fresh = copy.deepcopy(layer)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.add_(1)
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(2, *shape)
    assert torch.equal(fresh(x), layer(x))


def test_float32_layers_are_certified_too():
    torch.set_default_dtype(torch.float32)
    layer = NormalizedConv2d(4, 8, 3, (7, 7), coeff=0.97)
    with torch.no_grad():
        layer.weight.mul_(5)
    layer.eval().enforce()
    weight = layer.normalized_weight().detach().double()
    matrix = materialize(lambda x: layer.operator(weight)(x.double()), (4, 7, 7))
    assert float(torch.linalg.matrix_norm(matrix.double(), ord=2)) <= layer.bound().upper <= 0.97


def test_a_weight_of_zeros_does_not_end_the_power_iteration(kind):
    make, shape = LAYERS[kind]
    layer = make(coeff=0.9)
    with torch.no_grad():
        layer.weight.zero_()
        layer.train()
        layer.settle()
    layer.normalize()
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    for _ in range(60):
        layer.normalize()
    assert norm_in_action(layer, shape) == pytest.approx(0.9, rel=1e-3)


@pytest.mark.parametrize("coeff", [0.0, 1.0, 1.5, float("nan")])
def test_coefficients_of_one_and_more_are_refused(coeff):
    with pytest.raises(ValueError, match="coeff must lie strictly between 0 and 1"):
        NormalizedDense(2, 2, coeff=coeff)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        NormalizedConv2d(1, 1, 2, (4, 4), coeff=0.9)
