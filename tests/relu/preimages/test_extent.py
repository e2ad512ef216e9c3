"""Ranges, points and extremes of preimages, and attacks within them."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from iresflow.errors import LinearProgramError, NoPreimageError
from iresflow.relu import dense_layer, parse_network
from iresflow.relu.preimages.attack import InnerProduct, Nearest, invariance_attack
from iresflow.relu.preimages.classification import Kind, classify_preimage
from iresflow.relu.preimages.constraints import BOX, Between
from iresflow.relu.preimages.extent import farthest_in_preimage, preimage_box, sample_preimage

SIMPLEX = np.array([[1.0, 0], [0, 1], [-1, -1]])
TRIANGLE = classify_preimage(
    dense_layer(SIMPLEX, -np.ones(3)), np.zeros(3)
)  # corners (1, 1), (1, -2), (-2, 1)
RAY = classify_preimage(dense_layer(np.eye(2), np.zeros(2)), np.array([1.0, 0]))
POINT = classify_preimage(dense_layer(SIMPLEX, np.array([-2.0, 1, 1])), np.zeros(3))
EMPTY = classify_preimage(dense_layer(SIMPLEX, np.ones(3)), np.zeros(3))


def test_box_of_known_sets():
    np.testing.assert_allclose(torch.stack(preimage_box(TRIANGLE)), [[-2, -2], [1, 1]], atol=1e-8)
    np.testing.assert_allclose(torch.stack(preimage_box(RAY)), [[1, -np.inf], [1, 0]], atol=1e-8)
    np.testing.assert_allclose(torch.stack(preimage_box(POINT)), [[2, -1], [2, -1]], atol=1e-8)


def test_farthest_of_known_sets():
    far = farthest_in_preimage(TRIANGLE, np.array([-1.0, 2]))
    assert far.value == pytest.approx(4)
    np.testing.assert_allclose(far.point, [-2, 1], atol=1e-8)
    down = farthest_in_preimage(RAY, np.array([0.0, -1]))
    assert down.value == np.inf and down.point is None
    assert farthest_in_preimage(RAY, np.array([3.0, 1])).value == pytest.approx(3)
    assert farthest_in_preimage(POINT, np.array([1.0, 1])).value == pytest.approx(1)


def test_box_against_programs_in_all_coordinates():
    generator = np.random.default_rng(0)
    for _ in range(5):
        weight, x = generator.standard_normal((12, 5)), generator.random(5)
        bias = generator.standard_normal(12) - 0.5
        y = np.maximum(weight @ x + bias, 0)
        found = classify_preimage(dense_layer(weight, bias), y, prior=BOX)
        low, high = (part.numpy() for part in preimage_box(found))
        assert (low <= x + 1e-8).all() and (x <= high + 1e-8).all()
        (equal, f), (below, h) = found.constraints.equal, found.constraints.below
        for i in range(5):
            cost = np.eye(5)[i]
            by_x = linprog(
                cost, below, h, equal if len(f) else None, f if len(f) else None, (0, 1)
            )
            assert low[i] == pytest.approx(by_x.fun, abs=1e-7)


def test_samples_are_uniform_on_a_triangle():
    points = sample_preimage(TRIANGLE, 4000, steps=60).numpy()
    assert TRIANGLE.constraints.violation(points) < 1e-9
    # Mean and variance of the uniform distribution: those of the corners, the latter a quarter.
    error = np.sqrt(0.5 / 4000)
    assert np.abs(points.mean(0)).max() < 4 * error
    np.testing.assert_allclose(points.var(0), 0.5, rtol=4 * np.sqrt(2 / 4000))
    # A control: after one step they are not.
    assert sample_preimage(TRIANGLE, 4000, steps=1).numpy().var(0).max() < 0.45


def test_samples_of_faces_rays_and_points():
    layer = dense_layer(np.vstack([np.eye(3), -np.ones(3)]), -np.ones(4))
    face = classify_preimage(layer, np.array([1.0, 0, 0, 0]))
    points = sample_preimage(face, 200).numpy()
    assert face.constraints.violation(points) < 1e-9
    np.testing.assert_allclose(points[:, 0], 2, atol=1e-9)
    assert points[:, 1:].std(0).min() > 0.5
    ray = sample_preimage(RAY, 2000, reach=3.0)
    assert RAY.constraints.violation(ray.numpy()) < 1e-9
    lengths = (ray - RAY.point).norm(dim=1)
    assert 2.9 < lengths.max() <= 3 + 1e-9
    np.testing.assert_allclose(sample_preimage(POINT, 3), [[2, -1]] * 3, atol=1e-9)


def test_samples_repeat():
    draw = [
        sample_preimage(TRIANGLE, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_refuses():
    for explore in (preimage_box, lambda p: sample_preimage(p, 1)):
        with pytest.raises(NoPreimageError, match="empty: no preimage"):
            explore(EMPTY)
    with pytest.raises(ValueError, match="give a reach"):
        sample_preimage(RAY, 1)
    with pytest.raises(ValueError, match="above 0"):
        sample_preimage(TRIANGLE, 0)
    with pytest.raises(ValueError, match="direction has shape"):
        farthest_in_preimage(TRIANGLE, np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        farthest_in_preimage(TRIANGLE, np.array([np.nan, 1]))


def first_layers():
    return {
        "dense": parse_network(nn.Sequential(nn.Linear(40, 12), nn.ReLU())),
        "convolution": parse_network(
            nn.Sequential(nn.Conv2d(1, 2, 3, stride=3), nn.ReLU()), (1, 7, 7)
        ),
        "leaky": parse_network(nn.Sequential(nn.Linear(40, 12), nn.LeakyReLU(0.1))),
    }


@pytest.mark.parametrize("kind", ["dense", "convolution", "leaky"])
def test_attack_keeps_activations_and_comes_nearer(kind):
    layer = first_layers()[kind].layers[0]
    x, target = torch.rand(2, layer.affine.in_size)
    y = layer(x[None])
    bright = invariance_attack(layer, x, target)
    near = invariance_attack(layer, x, target, likeness=Nearest())
    for attack in (bright, near):
        again = layer(attack.x[None])
        assert float((again - y).abs().max()) == attack.difference <= 1e-6
        assert attack.x.min() >= 0 and attack.x.max() <= 1
        assert float((attack.x - x).abs().max()) > 0.2
    # Each is the better one by its own measure, and both are better than x.
    assert bright.x @ target >= near.x @ target > x @ target
    assert (near.x - target).abs().sum() <= (bright.x - target).abs().sum()
    assert (near.x - target).abs().sum() < (x - target).abs().sum()


def test_attack_on_an_injective_layer_finds_the_input_itself():
    layer = parse_network(nn.Sequential(nn.Linear(6, 30), nn.LeakyReLU(0.2))).layers[0]
    x = torch.rand(6)
    for likeness in (InnerProduct(), Nearest()):
        attack = invariance_attack(layer, x, torch.rand(6), likeness=likeness)
        np.testing.assert_allclose(attack.x, x.numpy(), atol=1e-7)


def test_attack_refuses():
    layer = first_layers()["dense"].layers[0]
    x = torch.rand(40)
    with pytest.raises(ValueError, match="x lies outside"):
        invariance_attack(layer, x - 2, x)
    with pytest.raises(ValueError, match="allowed 40"):
        invariance_attack(layer, x[:5], x)
    with pytest.raises(ValueError, match="target holds values"):
        invariance_attack(layer, x, torch.full((40,), torch.nan))
    with pytest.raises(ValueError, match="target lies outside"):
        invariance_attack(layer, x, x + 2, likeness=Nearest())
    unlimited = Between()
    with pytest.raises(LinearProgramError, match="unbounded"):
        invariance_attack(layer, x, x, prior=unlimited)


def test_attack_lies_in_the_preimage():
    layer = first_layers()["dense"].layers[0]
    x, target = torch.rand(2, 40)
    y = layer(x[None])[0]
    found = classify_preimage(layer, y, prior=BOX, member=x)
    assert found.kind is Kind.BOUNDED
    attack = invariance_attack(layer, x, target)
    assert found.constraints.violation(attack.x.numpy()) < 1e-8
    best = farthest_in_preimage(found, target)
    assert best.value == pytest.approx(float(attack.x @ target), abs=1e-7)
