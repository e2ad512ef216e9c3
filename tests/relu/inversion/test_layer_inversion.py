"""Inversion of one layer by hand, its statuses, and bad input."""

import numpy as np
import pytest
import torch
from torch import nn

from iresflow.relu.inversion.layer_inversion import invert_layer
from iresflow.relu.inversion.layer_programs import InfinityNorm, OneNorm, Relaxed
from iresflow.relu.networks.dense import dense_layer
from iresflow.relu.networks.network import Layer
from iresflow.relu.networks.parsing import parse_network

METHODS = [InfinityNorm(), OneNorm(), Relaxed()]


def named(method):
    return method.name


def layer_of(weight, bias=None, slope=0.0) -> Layer:
    bias = None if bias is None else torch.tensor(bias)
    return dense_layer(torch.tensor(weight), bias, slope)


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_by_hand(method):
    # x = relu(z1, z2, z1 - z2 - 1) at (2, 0.5).
    layer = layer_of([[1, 0], [0, 1], [1, -1]], [0.0, 0.0, -1.0])
    found = invert_layer(layer, np.array([2.0, 0.5, 0.5]), method)
    assert np.allclose(found.z, [2, 0.5], atol=1e-9)
    assert (found.status, found.determined, found.in_range) == ("optimal", "yes", "yes")
    assert found.steps[0].iterations == 0


def test_noise_by_hand():
    # One unknown, seen as 1.0, 1.2 and 1.7: the middle of the range, and the median.
    layer = layer_of([[1], [1], [1]])
    x = np.array([1.0, 1.2, 1.7])
    found = invert_layer(layer, x, InfinityNorm())
    assert float(found.z[0]) == pytest.approx(1.35) and found.objective == pytest.approx(0.35)
    found = invert_layer(layer, x, OneNorm())
    assert float(found.z[0]) == pytest.approx(1.2) and found.objective == pytest.approx(0.7)
    assert found.in_range == "no"


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.parametrize("seed", range(4))
def test_noiseless_layers_are_inverted_exactly(slope, method, seed):
    torch.manual_seed(seed)
    n = 30 if slope else 60
    layer = layer_of(torch.randn(n, 15).tolist(), torch.randn(n).tolist(), slope)
    z = torch.randn(15)
    found = invert_layer(layer, layer(z[None])[0], method)
    assert found.determined == "yes" and found.in_range == "yes"
    assert float((found.z - z).abs().max()) < 1e-9


def test_two_times_as_many_rows_are_enough_for_leaky_relu_only():
    """Twofold expansion leaves a ReLU k active rows of 2 k on average: half the time too few."""
    exact = {0.0: 0, 0.2: 0}
    for seed in range(30):
        torch.manual_seed(seed)
        weight = torch.randn(24, 12).tolist()
        z = torch.randn(12)
        for slope in exact:
            layer = layer_of(weight, None, slope)
            found = invert_layer(layer, layer(z[None])[0])
            right = float((found.z - z).abs().max()) < 1e-8
            # It never says "determined" of a wrong answer, and always meets the observation.
            assert right or found.determined == "no"
            assert found.in_range == "yes"
            exact[slope] += right
    assert exact[0.2] == 30
    assert 8 <= exact[0.0] <= 26


def test_the_supplements_leaky_rows_would_lose_the_truth():
    """Between the thresholds (x - e) / c <= w z excludes a noiseless z: see observed_ranges."""
    layer = layer_of(torch.randn(10, 4).tolist(), None, 0.2)
    z = torch.randn(4)
    x = layer(z[None])[0].numpy()
    between = (x > 0) & (x <= 10)
    assert between.any()
    assert (layer.affine.dense()[between] @ z.numpy() < x[between] / 0.2).all()
    found = invert_layer(layer, x, epsilon=10.0)
    assert found.objective <= 1e-9


def test_noisy_observation_of_a_layer_that_cannot_give_it():
    layer = layer_of([[1, 0], [0, 1], [1, 1]])
    found = invert_layer(layer, np.array([1.0, 1.0, 3.0]))
    assert found.in_range == "no" and found.objective == pytest.approx(1 / 3)
    # Negative outputs are none of a ReLU, wherever they come from.
    found = invert_layer(layer, np.array([1.0, 1.0, -0.5]))
    assert found.in_range == "no"


def test_too_few_active_rows_are_said():
    layer = layer_of([[1, 0], [0, 1], [1, 1]])
    found = invert_layer(layer, np.array([1.0, 0.0, 0.2]))
    assert found.determined == "yes"  # z2 = -0.8 makes the third row 0.2
    found = invert_layer(layer, np.array([1.0, 0.0, 0.0]))
    assert found.status == "optimal" and found.determined == "no" and found.in_range == "yes"


def test_rank_within_rounding_is_uncertain():
    layer = layer_of([[1, 0], [1, 1e-10], [2, 0]])
    found = invert_layer(layer, np.array([1.0, 1.0, 2.0]))
    assert found.determined == "uncertain"


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("method", METHODS, ids=named)
def test_no_program_is_unbounded(method, slope):
    """The misfits are at least 0, and each term of the correlation has its own limit."""
    for seed in range(10):
        torch.manual_seed(seed)
        layer = layer_of(torch.randn(3, 5).tolist(), torch.randn(3).tolist(), slope)
        found = invert_layer(layer, torch.randn(3), method, epsilon=0.1)
        assert found.status == "optimal"
        assert found.determined == "no"  # three rows don't pin five unknowns


def test_relaxed_program_may_be_infeasible_until_epsilon_is_large():
    # z <= x1 + eps and -z + 4 <= x2 + eps meet from eps = 1.5 on.
    layer = layer_of([[1], [-1]], [0.0, 4.0])
    found = invert_layer(layer, np.array([1.0, 0.0]), Relaxed(), epsilon=0.5, max_steps=2)
    assert found.status == "infeasible" and found.z is None
    found = invert_layer(layer, np.array([1.0, 0.0]), Relaxed(), epsilon=0.5, max_steps=9)
    assert [step.status for step in found.steps[:2]] == ["infeasible", "infeasible"]
    assert found.status == "optimal" and found.epsilon == 2.0


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_limits_that_least_squares_violates(method):
    # -2 z1 + z2 = 1: least squares without limits takes z1 = -1/2, and (0, 1) meets all rows too.
    found = invert_layer(layer_of([[-2, 1]]), np.array([1.0]), method, lower=0.0)
    assert found.error == pytest.approx(0, abs=2e-6)
    np.testing.assert_allclose(found.z @ torch.tensor([-2.0, 1.0]), 1, atol=2e-6)
    assert found.z.min() >= 0
    # -z = 1: nothing above 0 is nearer than 0 itself, where all entries are at their limit.
    found = invert_layer(layer_of([[-1]]), np.array([1.0]), method, lower=0.0)
    np.testing.assert_allclose(found.z, [0], atol=1e-9)
    assert found.status == "optimal" and found.error == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_the_answer_has_the_smallest_error_of_all_thresholds(method, slope):
    layer = layer_of(torch.randn(40, 6).tolist(), None, slope)
    x = layer(torch.randn(1, 6))[0] + 0.1 * torch.randn(40)
    found = invert_layer(layer, x, method, epsilon=0.01)
    smallest = min(step.error for step in found.steps)
    assert found.error == pytest.approx(smallest, rel=1e-7)
    output = layer(found.z[None])[0]
    assert found.error == pytest.approx(float(torch.linalg.norm(output - x, method.order)))


def test_spread_is_that_of_least_squares():
    torch.manual_seed(0)
    layer = layer_of(torch.randn(400, 5).tolist(), None, 1.0)
    z = torch.randn(5)
    errors, spreads = [], []
    for _ in range(40):
        x = layer(z[None])[0] + 0.1 * torch.randn(400)
        found = invert_layer(layer, x, OneNorm())
        errors.append((found.z - z).numpy())
        spreads.append(found.spread)
    # The median has pi / 2 times the variance of the mean for Gaussian noise.
    ratio = np.sqrt(np.mean(np.square(errors))) / np.mean(spreads)
    assert 0.8 < ratio / np.sqrt(np.pi / 2) < 1.2


def test_convolutions_are_sparse_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
    layer = parse_network(net, (1, 6, 6)).layers[0]
    image = torch.rand(1, 1, 6, 6)
    found = invert_layer(layer, net(image).flatten())
    assert found.in_range == "yes"
    if found.determined == "yes":
        assert float((found.z - image.flatten()).abs().max()) < 1e-8
    noisy = net(image).flatten().detach() + 0.01 * torch.rand(144)
    assert invert_layer(layer, noisy, epsilon=0.01).objective <= 0.01


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (np.zeros(2), {}, r"has shape \(2,\); layer given gives \(3,\)"),
        (np.zeros((1, 3)), {}, r"has shape \(1, 3\)"),
        (np.array([0, np.nan, 1]), {}, "not finite"),
        (np.ones(3), {"epsilon": 0.0}, "epsilon is 0"),
        (np.ones(3), {"epsilon": np.nan}, "epsilon is nan"),
        (np.ones(3), {"growth": 1.0}, "growth is 1"),
        (np.ones(3), {"max_steps": 0}, "max_steps is 0"),
        (np.ones(3), {"lower": np.nan}, "lower is nan"),
        (np.ones(3), {"lower": np.inf}, "lower is inf"),
        (np.ones(3), {"tolerance": 0.0}, "tolerance is 0"),
    ],
)
def test_bad_arguments(x, options, words):
    with pytest.raises(ValueError, match=words):
        invert_layer(layer_of([[1, 0], [0, 1], [1, 1]]), x, **options)


def test_a_slope_above_one_is_refused():
    layer = parse_network(nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(1.5))).layers[0]
    with pytest.raises(ValueError, match=r"slope 1\.5; allowed is 0 to 1"):
        invert_layer(layer, np.ones(3))


def test_observation_of_zeros():
    layer = layer_of([[1, 0], [0, 1], [-1, -1]])
    found = invert_layer(layer, np.zeros(3))
    assert found.status == "optimal" and found.determined == "no" and found.in_range == "yes"
    assert float(found.z.abs().max()) < 1e-9


@pytest.mark.parametrize("method", METHODS, ids=named)
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_units_change_nothing(method, slope):
    """Outputs in micro- or megavolts, inputs in nanometres: the solver's tolerance is a number."""
    weight, bias = torch.randn(30, 5), torch.randn(30)
    layer = dense_layer(weight, bias, slope)
    x = layer(torch.randn(1, 5))[0] + 0.1 * torch.randn(30)
    found = invert_layer(layer, x, method, epsilon=0.05)
    for out, into in ((1e-6, 1.0), (1e6, 1.0), (1.0, 1e-9), (1e5, 1e7)):
        scaled = dense_layer(out / into * weight, out * bias, slope)
        again = invert_layer(scaled, out * x, method, epsilon=0.05 * out)
        torch.testing.assert_close(again.z / into, found.z, rtol=1e-6, atol=1e-7)
        assert again.error == pytest.approx(out * found.error, rel=1e-6)
        assert again.spread == pytest.approx(into * found.spread, rel=1e-6)
        factor = out if method.fits else out**2
        assert again.objective == pytest.approx(factor * found.objective, rel=1e-6)
