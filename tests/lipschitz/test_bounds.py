import math

import pytest
import torch
import torch.nn.functional as F
from helpers import materialize

from iresflow.lipschitz import Bound, NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.bounds import fourier_norm, gram_norm, matrix_norm


def operator_norm(kernel, size):
    def convolve(x):
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)

    matrix = materialize(convolve, (kernel.shape[1], *size))
    return float(torch.linalg.matrix_norm(matrix, ord=2))


# The fewer the channels and pixels, the looser: 9 % at 7 x 7 from one channel, and on an image of
# one row a grid of three rows counts what is not there.
@pytest.mark.parametrize("channels", [(1, 4), (4, 3), (4, 32)])
@pytest.mark.parametrize(
    ("size", "looseness"), [((7, 7), 0.12), ((8, 8), 0.09), ((14, 14), 0.03), ((1, 5), 1.5)]
)
def test_fourier_bound_is_above_the_norm_and_tight(channels, size, looseness):
    kernel = torch.randn(channels[1], channels[0], 3, 3)
    norm = operator_norm(kernel, size)
    assert norm <= fourier_norm(kernel, size) <= (1 + looseness) * norm


def test_fourier_bound_of_five_by_five_kernels_is_above_the_norm():
    kernel = torch.randn(3, 2, 5, 5)
    norm = operator_norm(kernel, (9, 6))
    assert norm <= fourier_norm(kernel, (9, 6)) <= 1.4 * norm


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (1, 5)])
def test_matrix_bound_is_above_the_norm_and_tight(shape):
    matrix = torch.randn(shape)
    norm = float(torch.linalg.svdvals(matrix)[0])
    assert norm <= float(matrix_norm(matrix)) <= norm * (1 + 1e-12)


def test_gram_bound_is_above_the_norm_and_tight():
    matrix = torch.randn(30, 20)
    bound = gram_norm(lambda rows: rows @ matrix.mT @ matrix, 20, 30)
    norm = float(torch.linalg.svdvals(matrix)[0])
    assert norm <= bound <= norm * (1 + 1e-9)


def test_gram_bound_of_a_degenerate_spectrum():
    # The power iteration can't separate equal singular values, and need not.
    assert 2 <= gram_norm(lambda rows: 4 * rows, 10, 1) <= 2 * (1 + 1e-9)
    assert gram_norm(lambda rows: 0 * rows, 10, 1) == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(2, 3), (4, 2)])
@pytest.mark.parametrize("size", [(6, 5), (24, 24)])
def test_layer_bounds_hold_for_the_operator_that_acts(stride, channels, size):
    layer = NormalizedConv2d(*channels, 3, size, stride=stride, coeff=0.9).eval()
    weight = layer.normalized_weight()
    matrix = materialize(lambda x: layer.multiply(x, weight), (channels[0], *size)).detach()
    norm = float(torch.linalg.matrix_norm(matrix, ord=2))
    bound = layer.bound()
    assert bound.estimate <= norm * (1 + 1e-12) <= bound.upper * (1 + 1e-12)
    assert bound.upper <= norm * (1.02 if stride == 1 else 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_have_no_bound(value):
    for layer in (NormalizedDense(3, 4, coeff=0.9), NormalizedConv2d(2, 2, 3, (4, 4), coeff=0.9)):
        with torch.no_grad():
            layer.weight.view(-1)[0] = value
        assert layer.eval().bound().upper == math.inf


def test_composition_multiplies_upwards():
    product = Bound(0.9, 0.8, "svd").then(Bound(0.5, 0.5, "gram"))
    assert 0.45 <= product.upper < 0.45 + 1e-12
    assert product.estimate == pytest.approx(0.4)
    assert product.method == "svd+gram"
