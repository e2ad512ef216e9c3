"""Linearisations against finite differences."""

import pytest
import torch
from torch import nn

from iresflow.relu import parse_network
from iresflow.relu.stability.local_map import image_window, restrict_to_polytope

SHAPE = (2, 6, 6)


def small(kind):
    if kind == "dense":
        return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU()), (7,)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(4, 3, 3, stride=2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)), SHAPE


def parts(module):
    """The module up to each of its stages."""
    stages = [i for i, part in enumerate(module) if not isinstance(part, nn.Flatten)]
    return [module[: i + 1] for i in stages]


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_linearization_is_exact_on_the_polytope(kind):
    module, shape = small(kind)
    x = torch.randn(shape)
    local = restrict_to_polytope(parse_network(module, shape), x)
    near = x + 1e-3 * local.margin * torch.randn(20, *shape)
    matrices = dict(local.matrices())
    assert len(local.stages) == len(matrices) == len(parts(module))
    for stage, part in zip(local.stages, parts(module), strict=True):
        matrix = matrices[stage]
        expected = part(near).detach().flatten(1)
        assert matrix.shape == (stage.size, x.numel()) == (expected.shape[1], x.numel())
        by_map = (near - x).flatten(1) @ matrix.mT + part(x[None]).detach().flatten()
        torch.testing.assert_close(by_map, expected, rtol=0, atol=1e-12)
        jacobian = torch.autograd.functional.jacobian(lambda v, p=part: p(v[None])[0].flatten(), x)
        torch.testing.assert_close(matrix, jacobian.flatten(1))
        torch.testing.assert_close(local.matrix(stage), matrix)


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_products_are_those_of_the_matrix(kind):
    module, shape = small(kind)
    network = parse_network(module, shape)
    columns = torch.tensor([0, 2, 5])
    local = restrict_to_polytope(network, torch.randn(shape), columns)
    whole = restrict_to_polytope(network, local.point)
    for stage, matrix in local.matrices():
        torch.testing.assert_close(matrix, whole.matrix(stage)[:, columns])
        v, u = torch.randn(4, 3), torch.randn(4, stage.size)
        torch.testing.assert_close(local.product(v, stage), v @ matrix.mT)
        torch.testing.assert_close(local.adjoint(u, stage), u @ matrix)


def test_margin_is_zero_on_the_border_of_a_polytope():
    module = nn.Linear(3, 2, bias=False)
    network = parse_network(nn.Sequential(module, nn.ReLU()))
    inside = restrict_to_polytope(network, torch.ones(3))
    border = restrict_to_polytope(network, torch.zeros(3))
    assert inside.margin == pytest.approx(float(module(torch.ones(3)).detach().abs().min()))
    assert border.margin == 0


def test_window():
    window = image_window((2, 5, 6), 2)
    picture = torch.zeros(60)
    picture[window] = 1
    expected = torch.zeros(2, 5, 6)
    expected[:, 1:3, 2:4] = 1
    torch.testing.assert_close(picture.view(2, 5, 6), expected)
    with pytest.raises(ValueError, match="must fit"):
        image_window((2, 5, 6), 6)


def test_refuses():
    network = parse_network(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    with pytest.raises(ValueError, match="inputs have shape"):
        restrict_to_polytope(network, torch.zeros(4))
    with pytest.raises(ValueError, match="not finite"):
        restrict_to_polytope(network, torch.tensor([0.0, torch.nan, 1]))
    with pytest.raises(ValueError, match="columns"):
        restrict_to_polytope(network, torch.zeros(3), torch.tensor([3]))


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_slopes_are_exact_whatever_the_default_float_type(default):
    """0.01 as float32 is 2e-10 off: a float64 network would not be linearised exactly."""
    module, shape = small("convolutional")
    module[1].negative_slope = 0.01
    x = torch.randn(shape)
    torch.set_default_dtype(default)
    network = parse_network(module, shape)
    local = restrict_to_polytope(network, x)
    assert set(local.slopes[0].tolist()) == {0.01, 1.0}
    jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x).flatten(1)
    torch.testing.assert_close(local.matrix(local.stages[-1]), jacobian, rtol=0, atol=1e-15)
    *_, (_, output) = network.activations(x[None])
    torch.testing.assert_close(output, module(x[None]).detach(), rtol=0, atol=1e-15)
