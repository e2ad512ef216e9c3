"""What is reported of networks, against dense decompositions and brute force."""

import pytest
import torch
import torchvision
from torch import nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.relu.analysis import layers_on_polytope, parse_first_layers
from iresflow.relu.networks.parsing import parse_network


def small(on):
    return nn.Sequential(nn.Linear(6, 9), on, nn.Linear(9, 4), on, nn.Linear(4, 3))


@pytest.mark.parametrize("on", [nn.ReLU(), nn.LeakyReLU(0.2)])
def test_deeper_layers_keep_output_and_units(on):
    """Equal outputs of the layer: equal outputs of the network, by the same units before."""
    module = small(on)
    network = parse_network(module)
    counts = {True: 0, False: 0}
    for x in torch.randn(20, 1, 6):
        whole = list(network.activations(x))
        for depth, layer in enumerate(layers_on_polytope(network, x, 10_000)):
            jacobian = torch.autograd.functional.jacobian(module[: 2 * depth + 2], x)[0, :, 0]
            ways = torch.linalg.svd(jacobian)[2]
            lost = ways[int(torch.linalg.matrix_rank(jacobian)) :]
            for size in (1e-3, 0.5):
                for way in (lost, ways):  # such that keep the output, and such that don't
                    v = x + size * torch.randn(1, len(way)) @ way
                    moved = list(network.activations(v))
                    units = zip(whole[:depth], moved[:depth], strict=True)
                    same = all(bool(((z > 0) == (w > 0)).all()) for (z, _), (w, _) in units)
                    same &= torch.allclose(whole[depth][1], moved[depth][1], atol=1e-12)
                    assert torch.allclose(layer(x), layer(v), atol=1e-12) == same
                    counts[same] += 1
    assert min(counts.values()) > 40


def test_ends_before_large_matrices():
    network = parse_network(small(nn.ReLU()))
    x = torch.randn(6)
    assert len(list(layers_on_polytope(network, x, 18 * 6))) == 2
    assert len(list(layers_on_polytope(network, x, 1))) == 1


def test_first_layers_of_a_residual_network():
    module = torchvision.models.resnet18(weights=None).eval()
    network = parse_first_layers(module, (3, 32, 32))
    assert [layer.name for layer in network.layers][:2] == ["conv1", "maxpool"]
    assert network.layers[-1].name == "layer1.0.conv2"
    whole = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    assert len(parse_first_layers(whole, (3,)).layers) == 1
    with pytest.raises(UnsupportedNetworkError, match="Tanh"):
        parse_first_layers(nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), (3,))
