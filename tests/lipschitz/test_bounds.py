import math

import pytest
import torch
from helpers import materialize

from iresflow.lipschitz import (
    Bound,
    Certified,
    CircularPadding,
    NormalizedConv2d,
    NormalizedDense,
    ReflectPadding,
    ZeroPadding,
)
from iresflow.lipschitz.bounds import banded
from iresflow.lipschitz.bounds.banded import banded_bound
from iresflow.lipschitz.bounds.matrix import matrix_norm
from iresflow.lipschitz.bounds.symbol import symbol_norm
from iresflow.lipschitz.layers.padding import Axis

PADDINGS = {"zero": ZeroPadding(), "circular": CircularPadding(), "reflect": ReflectPadding()}


def operator(kernel, size, padding=PADDINGS["zero"], stride=1):
    return materialize(padding.operator(kernel, stride), (kernel.shape[1], *size))


def spectral(matrix):
    """The largest singular value, of a matrix that is scaled first: LAPACK squares its entries."""
    largest = float(matrix.abs().max())
    return largest and largest * float(torch.linalg.matrix_norm(matrix / largest, ord=2))


def random_case(generator):
    """A kernel of any rank and size of entries, a padding and an image down to one pixel."""

    def draw(*values):
        return values[int(torch.randint(len(values), (), generator=generator))]

    name, side, stride = draw(*PADDINGS), draw(1, 3, 3, 5), draw(1, 1, 2, 3)
    least = {"zero": 1, "circular": max(1, side // 2), "reflect": side // 2 + 1}[name]
    size = tuple(draw(*range(least, 8)) for _ in range(2))
    kernel = torch.randn(draw(1, 2, 4), draw(1, 3, 4), side, side, generator=generator)
    kernel = draw(kernel, kernel, torch.ones_like(kernel), kernel[:1].expand_as(kernel))
    kernel = kernel * draw(1.0, 1.0, 1e-3, 1e-180, 1e-30, 1e18, 1e100, 0.0)
    return kernel.clone(), size, PADDINGS[name], stride


@pytest.mark.parametrize("seed", range(120))
def test_bounds_of_random_convolutions_are_never_below_the_norm(seed, monkeypatch):
    kernel, size, padding, stride = random_case(torch.Generator().manual_seed(seed))
    norm = spectral(operator(kernel, size, padding, stride))
    smooth, _ = symbol_norm(kernel, padding.grids(size, kernel.shape[-1]))
    assert norm <= float(smooth) * padding.amplification(size, kernel.shape[-1])
    for dense in (0, banded.DENSE):  # by Lanczos' method, and by all eigenvalues
        monkeypatch.setattr(banded, "DENSE", dense)
        tight = banded_bound(kernel, size, stride, padding)
        assert tight.estimate <= norm * (1 + 1e-12) <= tight.upper * (1 + 1e-12)
        assert tight.upper <= norm * (1 + 1e-3)
    layer = NormalizedConv2d(
        *kernel.shape[1::-1], kernel.shape[-1], size, stride=stride, padding=padding, coeff=0.9
    )
    bound = layer.tight_bound(kernel, layer.left)
    assert bound.estimate <= norm * (1 + 1e-12) and norm <= bound.upper <= norm * (1 + 1e-3)


# Few channels and pixels are the loosest.
@pytest.mark.parametrize("channels", [(1, 4), (4, 3), (4, 32), (16, 8)])
@pytest.mark.parametrize(("side", "looseness"), [(7, 0.06), (8, 0.05), (14, 0.015), (28, 0.005)])
def test_the_fourier_bound_is_tight_by_its_twists(channels, side, looseness):
    kernel = torch.randn(channels[1], channels[0], 3, 3)
    tight = banded_bound(kernel, (side, side), 1, ZeroPadding())
    upper, _ = symbol_norm(kernel, ZeroPadding().grids((side, side), 3))
    assert tight.upper <= tight.estimate * 1.0005
    assert tight.estimate <= float(upper) <= (1 + looseness) * tight.estimate


def test_the_twisted_grid_is_exact_for_the_laplacian():
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])[None, None]
    norm = spectral(operator(kernel, (6, 9)))
    assert norm == pytest.approx(4 + 2 * math.cos(math.pi / 7) + 2 * math.cos(math.pi / 10))
    upper, lower = symbol_norm(kernel, ZeroPadding().grids((6, 9), 3))
    assert norm <= float(upper) <= norm * (1 + 1e-9) and lower <= norm
    # A peak right on a grid point is the loosest case, and the only untwisted grid has it.
    one, _ = symbol_norm(kernel, ((Axis(8), Axis(10)),))
    assert float(one) == pytest.approx(8)


def test_a_grid_without_a_margin_bounds_nothing():
    # A control: on a grid of the image's own size taps wrap round onto the image.
    below = 0
    for _ in range(20):
        kernel = torch.randn(2, 2, 3, 3)
        grids = [(Axis(3, a), Axis(3, b)) for a in (0.0, math.pi) for b in (0.0, math.pi)]
        below += float(symbol_norm(kernel, tuple(grids))[0]) < spectral(operator(kernel, (3, 3)))
    assert below > 0


def test_wide_layers_use_one_twist(monkeypatch):
    layer = NormalizedConv2d(3, 5, 3, (9, 8), coeff=0.9)
    four = float(layer.smooth_bound(layer.weight.detach()))
    monkeypatch.setattr("iresflow.lipschitz.layers.linear.TWIST_LIMIT", 0)
    one = float(layer.smooth_bound(layer.weight.detach()))
    assert four <= one <= 1.1 * four


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (6, 6)])
def test_circular_convolutions_are_bounded_by_their_norm(size):
    kernel = torch.randn(3, 2, 3, 3)
    norm = spectral(operator(kernel, size, CircularPadding()))
    upper, lower = symbol_norm(kernel, CircularPadding().grids(size, 3))
    assert lower <= norm <= float(upper) <= norm * (1 + 1e-9)
    assert lower >= norm * (1 - 1e-9)


def test_many_frequencies_go_in_parts(monkeypatch):
    kernel = torch.randn(6, 5, 3, 3)
    grids = ZeroPadding().grids((6, 7), 3)
    whole, _ = symbol_norm(kernel, grids)
    monkeypatch.setattr("iresflow.lipschitz.bounds.symbol._ENTRIES", 200)
    parts, _ = symbol_norm(kernel, grids)
    assert float(parts) == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5), (40, 40)])
@pytest.mark.parametrize("size", [1.0, 1e-200, 1e18])
def test_matrix_bound_is_above_the_norm_and_tight(shape, size):
    matrix = torch.randn(shape) * size
    norm = spectral(matrix)
    upper, lower = matrix_norm(matrix)
    assert norm <= float(upper) <= norm * (1 + 1e-11)
    assert norm * (1 - 1e-11) <= lower <= norm


def test_bounds_of_degenerate_spectra():
    # Lanczos iterations end after one step, and no frequency exceeds the others.
    delta = torch.zeros(4, 4, 3, 3)
    delta[:, :, 1, 1] = 2 * torch.eye(4)
    for upper in (
        banded_bound(delta, (5, 5), 1, ZeroPadding()).upper,
        float(symbol_norm(delta, ZeroPadding().grids((5, 5), 3))[0]),
        float(matrix_norm(2 * torch.eye(5))[0]),
    ):
        assert 2 <= upper <= 2 * (1 + 1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", sorted(PADDINGS))
@pytest.mark.parametrize(("channels", "size"), [((2, 3), (6, 5)), ((4, 2), (12, 12))])
def test_layer_bounds_hold_for_the_operator_that_acts(stride, name, channels, size):
    layer = NormalizedConv2d(
        *channels, 3, size, stride=stride, padding=PADDINGS[name], coeff=0.9
    ).eval()
    weight = layer.normalized_weight().detach()
    norm = spectral(operator(weight, size, PADDINGS[name], stride))
    bound = layer.bound()
    assert bound.estimate <= norm * (1 + 1e-12) <= bound.upper * (1 + 1e-12)
    assert bound.upper <= norm * 1.001


@pytest.mark.parametrize("name", sorted(PADDINGS))
def test_layers_too_large_for_a_factorisation_are_bounded_too(name, monkeypatch):
    layer = NormalizedConv2d(3, 5, 3, (9, 8), padding=PADDINGS[name], coeff=0.9).eval()
    norm = spectral(operator(layer.normalized_weight().detach(), (9, 8), PADDINGS[name]))
    monkeypatch.setattr("iresflow.lipschitz.layers.linear.BANDED_ALWAYS", 0)
    if name != "circular":
        # Ten iterations don't tell that the DFT's bound is tight enough.
        assert layer.tight_bound(layer.weight, layer.left).method == "banded"
    monkeypatch.setattr("iresflow.lipschitz.layers.linear.BANDED_LIMIT", 0)
    monkeypatch.setattr("iresflow.lipschitz.layers.linear.LOOSE_LIMIT", 0)
    bound = layer.bound()
    assert bound.method == "fourier"
    assert bound.estimate <= norm * (1 + 1e-12) <= bound.upper * (1 + 1e-12)
    assert bound.upper <= norm * (3 if name == "reflect" else 1.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_have_no_bound(value):
    layers = [NormalizedDense(3, 4, coeff=0.9)]
    for padding in PADDINGS.values():
        layers += [NormalizedConv2d(2, 2, k, (4, 4), padding=padding, coeff=0.9) for k in (1, 3)]
    for layer in layers:
        with torch.no_grad():
            layer.weight.view(-1)[0] = value
        assert layer.eval().bound().upper == math.inf


@pytest.mark.parametrize("name", sorted(PADDINGS))
def test_enforcing_the_certified_norm_holds_where_the_fourier_bound_is_exact(name):
    # Of a delta or an averaging kernel it is: the factorisation's margin is then too much.
    layer = NormalizedConv2d(
        1, 1, 3, (6, 5), padding=PADDINGS[name], coeff=0.9, normalization=Certified()
    )
    delta = torch.zeros(3, 3)
    delta[1, 1] = 5
    for kernel in (delta, torch.ones(3, 3)):
        layer.weight.data.copy_(kernel)
        layer.eval().enforce()
        assert layer.bound().upper <= 0.9


def test_composition_multiplies_upwards():
    product = Bound(0.9, 0.8, "svd").then(Bound(0.5, 0.5, "gram"))
    assert 0.45 <= product.upper < 0.45 + 1e-12
    assert product.estimate == pytest.approx(0.4)
    assert product.method == "svd+gram"


def test_an_operator_may_vanish_though_its_kernel_does_not():
    """On an image one pixel wide the outer columns of a kernel read zeros alone."""
    layer = NormalizedConv2d(1, 1, 3, (8, 1), coeff=0.9)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 0, 0] = 1.0
    assert 0 <= layer.tight_bound(layer.weight, layer.left).upper < 1.1
