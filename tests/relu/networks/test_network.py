"""Networks as piecewise linear layers, against the modules that they are read from."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from iresflow.relu import parse_network
from iresflow.relu.networks.affine import IdentityMap
from iresflow.relu.networks.convolution import ConvolutionMap

SHAPE = (4, 7, 6)

CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"padding": (1, 0), "stride": (2, 1)},
    "same": {"padding": "same", "dilation": 2},
    "grouped": {"padding": 1, "groups": 2, "bias": False},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": (2, 1), "padding_mode": "reflect", "stride": 2},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
}


def network():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.Sequential(nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(), nn.Dropout(0.5)),
        nn.Flatten(),
        nn.Linear(24, 9),
        nn.BatchNorm1d(9, affine=False),
        nn.ReLU(),
        nn.Linear(9, 5),
        nn.Linear(5, 3, bias=False),
    )


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_is_its_sparse_matrix(kind):
    module = nn.Conv2d(4, 6, 3, **CONVOLUTIONS[kind])
    affine = ConvolutionMap(module, SHAPE)
    x = torch.randn(5, *SHAPE)
    expected = module(x).detach().flatten(1)
    matrix = affine.matrix()
    assert sparse.issparse(matrix)
    assert affine.out_shape == module(x).shape[1:]
    torch.testing.assert_close(affine(x.flatten(1)), expected)
    by_matrix = torch.from_numpy(x.flatten(1).numpy() @ matrix.T) + affine.bias
    torch.testing.assert_close(by_matrix, expected)
    u = torch.randn_like(expected)
    np.testing.assert_allclose(affine.adjoint(u), u.numpy() @ matrix, atol=1e-12)


def test_network_equals_its_module():
    module = network()
    module(torch.randn(32, *SHAPE))  # moves the running statistics
    module.eval()
    parsed = parse_network(module, SHAPE)
    assert [layer.slope for layer in parsed.layers] == [0.2, 0.0, 0.0, 1.0]
    assert [layer.name for layer in parsed.layers] == ["0", "3.0", "5", "8"]
    x = torch.randn(8, *SHAPE)
    torch.testing.assert_close(parsed(x), module(x).detach())
    (z, y), *_ = parsed.activations(x)
    torch.testing.assert_close(y, module[:3](x).detach().flatten(1))
    torch.testing.assert_close(z, module[:2](x).detach().flatten(1))


def test_weights_are_copied():
    module = nn.Sequential(nn.Linear(3, 2))
    parsed, x = parse_network(module), torch.randn(4, 3)
    before = parsed(x)
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.zero_()
    torch.testing.assert_close(parsed(x), before)


def test_activation_first_and_twice():
    parsed = parse_network(nn.Sequential(nn.ReLU(), nn.LeakyReLU(0.5), nn.Linear(3, 2)), 3)
    assert all(isinstance(layer.affine, IdentityMap) for layer in parsed.layers[:2])
    assert np.array_equal(parsed.layers[0].affine.dense(), np.eye(3))
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    torch.testing.assert_close(list(parsed.activations(x))[1][1], x.relu())


def test_float32_modules_are_read_in_float64():
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).float()
    parsed = parse_network(module)
    assert parsed(torch.randn(1, 3, dtype=torch.float32)).dtype == torch.float64


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 4), "allowed is (B, 3)"),
        (torch.zeros(3), "inputs have shape (3,)"),
        (torch.tensor([[0.0, torch.nan, 0.0]]), "not finite"),
    ],
)
def test_refuses_inputs(x, message):
    with pytest.raises(ValueError) as caught:
        parse_network(nn.Linear(3, 2))(x)
    assert message in str(caught.value)
