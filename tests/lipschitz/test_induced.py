import itertools
import math

import pytest
import torch
from helpers import branch_shape, dense_jacobian, materialize, small_branch

from iresflow import NotContractiveError
from iresflow.lipschitz import (
    CircularPadding,
    LipSwish,
    NormalizedConv2d,
    NormalizedDense,
    ReflectPadding,
    ZeroPadding,
    conv_branch,
    dense_branch,
)
from iresflow.lipschitz.bounds.induced import NORMS, entry_bounds

DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


def induced_norm(matrix, p, q):
    """The norm by its definition: at a vertex of the unit ball of p, or of that dual to q's."""
    if p == 1:
        return float(torch.linalg.vector_norm(matrix, ord=q, dim=0).max())
    if q == math.inf:
        return float(torch.linalg.vector_norm(matrix, ord=DUAL[p], dim=1).max())
    if p == math.inf:
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=matrix.shape[1])))
        return float(torch.linalg.vector_norm(signs @ matrix.mT, ord=q, dim=1).max())
    if q == 1:
        return induced_norm(matrix.mT, math.inf, 2.0)
    return float(torch.linalg.matrix_norm(matrix, ord=2))


EXACT = {(p, q) for p in NORMS for q in NORMS if p == 1 or q == math.inf}
LAYERS = {
    "dense": lambda: NormalizedDense(9, 7, coeff=0.9),
    "pointwise": lambda: NormalizedConv2d(2, 3, 1, (2, 2), coeff=0.9),
    **{
        f"{padding.mode}-{size}-{stride}": lambda padding=padding, size=size, stride=stride: (
            NormalizedConv2d(1, 2, 3, size, stride=stride, padding=padding, coeff=0.9)
        )
        for padding in (ZeroPadding(), CircularPadding(), ReflectPadding())
        for size in ((2, 2), (3, 3), (2, 4))
        for stride in (1, 2)
    },
}


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_induced_norms_of_layers_are_bounded_and_exact_where_there_is_a_formula(kind):
    layer = LAYERS[kind]()
    with torch.no_grad():
        layer.weight.mul_(7)
    layer.settle()
    shape = (9,) if kind == "dense" else (layer.weight.shape[1], *layer.image_size)
    weight = layer.normalized_weight().detach()
    matrix = materialize(layer.operator(weight), shape)
    for p, q in itertools.product(NORMS, NORMS):
        norm, bound = induced_norm(matrix, p, q), layer.bound(p, q)
        assert bound.estimate <= norm * (1 + 1e-9) and norm <= bound.upper
        if (p, q) in EXACT:
            assert bound.upper <= norm * (1 + 1e-9)
        # Nothing exceeds the vector of ones by more than Grothendieck's constant or the like.
        assert bound.upper <= norm * (1.001 if (p, q) == (2, 2) else 2.5)


@pytest.mark.parametrize("value", [0.0, 1e-200, 1e18, math.inf, math.nan])
def test_entry_bounds_of_extreme_weights(value):
    one = torch.eye(3)[None]
    bounds = entry_bounds(torch.full((2, 3, 1, 1), value), one, one)
    expected = math.inf if not math.isfinite(value) else 2 * value
    assert bounds[1.0, 1.0] == pytest.approx(expected)
    assert len(bounds) == 8
    assert all(bound >= abs(value) or math.isnan(value) for bound in bounds.values())


def test_a_reflected_border_adds_up_taps_of_opposite_sign():
    # Both taps beside the centre read the same pixel there, and cancel each other.
    kernel = torch.tensor([[0.0, 0, 0], [1, 0, -1], [0, 0, 0]])[None, None]
    taps = [ReflectPadding().taps(2, 3, 1) for _ in range(2)]
    assert max(entry_bounds(kernel, *taps).values()) < 1e-12


@pytest.mark.parametrize("activation", ["clipswish", "elu"])
@pytest.mark.parametrize("norm", NORMS)
def test_branch_bounds_hold_for_jacobians_in_each_norm(activation, norm):
    branch = small_branch("conv", activation)
    x = 3 * torch.randn(6, *branch_shape("conv"))
    upper = branch.bound(norm).upper
    for jacobian in dense_jacobian(branch, x):
        assert induced_norm(jacobian, norm, norm) <= upper
    product = math.prod(
        layer.bound(norm, norm).upper * activation.lipschitz_in(norm)
        for layer, activation in zip(branch.layers, branch.activations, strict=True)
    )
    assert upper <= product * (1 + 1e-12)


def test_a_path_through_another_norm_is_found_where_it_is_shorter():
    # All into one unit, and from there to all: the maximum norm in between costs less.
    branch = dense_branch(4, 64, activation=LipSwish, coeff=0.9, activate_input=False)
    with torch.no_grad():
        for layer, weight in zip(
            branch.layers,
            (torch.ones(64, 4), torch.eye(64), torch.eye(4, 64)),
            strict=True,
        ):
            layer.weight.copy_(weight * 0.01)
    branch.eval()
    direct = math.prod(layer.bound().upper for layer in branch.layers) * LipSwish.lipschitz**2
    assert branch.bound().upper < 0.5 * direct
    assert "entries" in branch.bound().method


def test_other_norms_are_refused():
    branch = conv_branch(2, 3, (4, 4), activation=LipSwish, coeff=0.9)
    with pytest.raises(ValueError, match="1, 2 or infinity, got 3"):
        branch.bound(3)


def bounds_hold(layer, shape):
    """Of what the weight of float32, as it is scaled there, does in float64."""
    weight = layer.normalized_weight().detach()
    assert weight.dtype == torch.float32
    matrix = materialize(layer.operator(weight.double()), shape)
    bounds = layer.bounds()
    ends = itertools.product(NORMS, NORMS)
    return all(induced_norm(matrix, p, q) <= bounds[p, q].upper for p, q in ends)


@pytest.mark.parametrize("padding", [ReflectPadding(), CircularPadding()])
def test_bounds_hold_where_the_taps_of_a_pixel_cancel(padding):
    """A pixel that several taps read sums their rounding, and not their values."""
    for trial in range(60):
        layer = NormalizedConv2d(2, 3, 3, (2, 2), coeff=0.9, padding=padding).float().eval()
        weight = 2 * torch.randn(3, 2, 3, 3)
        weight[..., 1] = 0
        weight[..., 2] = -weight[..., 0] * (1 + 10.0 ** (-1 - trial % 6) * torch.randn(3, 2, 3))
        with torch.no_grad():
            layer.weight.copy_(weight)
        layer.enforce()
        assert bounds_hold(layer, (2, 2, 2))


@pytest.mark.parametrize("size", [2.0**-149, 1e-40, 1e-38])
def test_bounds_hold_where_numbers_lose_their_digits(size):
    layer = NormalizedDense(4, 3, coeff=0.9).float().eval()
    for _ in range(50):
        with torch.no_grad():
            layer.weight.copy_(size * torch.randint(-9, 9, (3, 4)))
            layer.settle()
            layer.sigma.fill_(2.0)  # as a file may hold it
        assert bounds_hold(layer, (4,))


@pytest.mark.parametrize("size", [1e38, 3e38])
def test_a_norm_that_no_float_holds_is_refused_by_name(size):
    for layer in (NormalizedDense(4, 3, coeff=0.9), NormalizedConv2d(2, 3, 3, (4, 4), coeff=0.9)):
        layer = layer.float().eval()
        with torch.no_grad():
            layer.weight.fill_(size)
        with pytest.raises(NotContractiveError, match=r"norm of up to .*torch.float32 ends at"):
            layer.enforce()
