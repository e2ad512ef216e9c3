"""Every way to compute a convolution gives the same as the plain one."""

import pytest
import torch
import torch.nn.functional as F
from helpers import CLOSED

from iresflow.lipschitz.layers import convolution
from iresflow.lipschitz.layers.convolution import convolve_same, same_layout, same_weight_gradient

CASES = [
    (1, 16, 3, (5, 5)),
    (3, 20, 5, (7, 6)),
    (4, 16, 3, (4, 4)),
    (8, 32, 3, (4, 5)),
    (8, 8, 1, (5, 5)),
]
WAYS = {
    "by taps": {"LARGE": 1, "SMALL": 0},
    "matrices": {"LARGE": 1 << 40, "SMALL": 1 << 40},
    "plain": {"LARGE": 1 << 40, "SMALL": 0},
}


@pytest.mark.parametrize("outputs, inputs, side, size", CASES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("last", [True, False])
def test_convolutions_and_their_gradients(outputs, inputs, side, size, way, last, monkeypatch):
    for name, value in WAYS[way].items():
        monkeypatch.setattr(convolution, name, value)
    x = torch.randn(3, inputs, *size)
    x = same_layout(x) if last else x
    weight = torch.randn(outputs, inputs, side, side, requires_grad=True)
    bias, u = torch.randn(outputs), torch.randn(3, outputs, *size)
    expected = F.conv2d(x, weight, bias, padding=side // 2)
    (gradient,) = torch.autograd.grad((expected * u).sum(), weight)
    y = convolve_same(x, weight, bias)
    torch.testing.assert_close(y, expected, rtol=CLOSED, atol=CLOSED)
    ours = same_weight_gradient(x, u, weight.shape)
    torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-10)
    (through,) = torch.autograd.grad((y * u).sum(), weight)
    torch.testing.assert_close(through, gradient, rtol=1e-10, atol=1e-10)


def test_sums_of_taps_in_bfloat16_are_rounded_once(monkeypatch):
    monkeypatch.setattr(convolution, "LARGE", 1)
    x = same_layout(torch.ones(1, 64, 3, 3, dtype=torch.bfloat16))
    weight = torch.full((1, 64, 3, 3), 1 / 64, dtype=torch.bfloat16)
    assert float(convolve_same(x, weight)[0, 0, 1, 1]) == 9
