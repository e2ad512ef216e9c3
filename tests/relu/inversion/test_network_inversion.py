"""Inversion of whole networks: exact recovery, error bounds, sensing, and the baseline."""

import numpy as np
import pytest
import torch
from torch import nn

from iresflow.errors import NonFiniteError, UnsupportedNetworkError
from iresflow.relu.inversion.error_bounds import (
    bound_error,
    error_bounds,
    infinity_constant,
    norm_constant,
)
from iresflow.relu.inversion.gradient_descent import descend
from iresflow.relu.inversion.layer_programs import InfinityNorm, OneNorm, Relaxed
from iresflow.relu.inversion.measurements import observe_part, sense
from iresflow.relu.inversion.network_inversion import invert_network
from iresflow.relu.networks.parsing import parse_network

METHODS = [InfinityNorm(), OneNorm(), Relaxed()]


def generator(sizes, slope=0.0, *, last=True, seed=0):
    torch.manual_seed(seed)
    parts = []
    for i, (k, n) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        linear = nn.Linear(k, n)
        nn.init.normal_(linear.weight, std=k**-0.5)
        nn.init.normal_(linear.bias, std=0.1)
        parts.append(linear)
        if last or i < len(sizes) - 2:
            parts.append(nn.LeakyReLU(slope) if slope else nn.ReLU())
    return parse_network(nn.Sequential(*parts))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_expanding_networks_without_noise_are_recovered(method, slope, seed):
    # Twofold is enough where negative values are seen; ReLU hides half of them (Lemma 1).
    sizes = (10, 20, 40, 80) if slope else (10, 40, 140)
    network = generator(sizes, slope, seed=seed)
    z = torch.randn(1, 10)
    found = invert_network(network, network(z)[0], method)
    assert found.status == "optimal" and found.determined == "yes"
    assert float((found.z - z[0]).abs().max()) < 1e-8
    assert found.error < 1e-8
    assert all(layer.in_range == "yes" for layer in found.layers)


def test_twofold_relu_layers_are_recovered_wherever_they_say_so():
    exact = said = 0
    for seed in range(20):
        network = generator((8, 17, 40), seed=seed)
        z = torch.randn(1, 8)
        found = invert_network(network, network(z)[0])
        right = float((found.z - z[0]).abs().max()) < 1e-7
        if found.determined == "yes":
            said += 1
            assert right
        exact += right
    assert 3 < said <= exact < 20


def test_a_last_layer_without_activation():
    network = generator((6, 24, 30), last=False)
    z = torch.randn(1, 6)
    found = invert_network(network, network(z)[0])
    assert float((found.z - z[0]).abs().max()) < 1e-9


def test_the_range_of_relu_helps_against_noise():
    better = 0.0
    for seed in range(6):
        network = generator((10, 50, 120), seed=seed)
        z = torch.randn(1, 10)
        x = network(z)[0] + 0.02 * (2 * torch.rand(120) - 1)
        errors = [
            float((invert_network(network, x, epsilon=0.02, ranges=r).z - z[0]).abs().max())
            for r in (True, False)
        ]
        better += errors[0] < errors[1]
    assert better >= 4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("method", "order"), [(InfinityNorm(), np.inf), (OneNorm(), 1)])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_error_bounds_hold(seed, method, order, slope):
    network = generator((4, 40, 200), slope, seed=seed)
    z = torch.randn(1, 4)
    clean = network(z)[0]
    noise = 1e-5 * (2 * torch.rand(200) - 1)
    size = float(torch.linalg.norm(noise, order))
    # Thresholds above the noise of each layer: chosen so that the conditions hold.
    found = invert_network(
        network, clean + noise, method, epsilon=[0.05, max(size, 1e-5)], ranges=False
    )
    bounds = error_bounds(network, found, size, order=order)
    assert len(bounds) == 2 and all(bound.holds for bound in bounds)
    truth = [next(iter(network.activations(z)))[1][0], z[0]]
    for layer, bound, true in zip(found.layers, bounds, truth, strict=True):
        error = float(torch.linalg.vector_norm(layer.z - true, order))
        assert error <= bound.posterior * (1 + 1e-6) + 1e-9
        assert error <= bound.lemma * (1 + 1e-6) + 1e-9
    if order == np.inf:
        exact = error_bounds(network, found, size, exact=True)
        assert all(a.constant >= b.constant - 1e-9 for a, b in zip(exact, bounds, strict=True))
        assert float((found.z - z[0]).abs().max()) <= exact[-1].lemma + 1e-9


def test_bounds_do_not_hold_where_the_noise_exceeds_the_threshold():
    bound = bound_error(np.eye(2), order=np.inf, noise=1.0, misfit=0.0, epsilon=0.5)
    assert not bound.holds
    assert bound_error(np.eye(2), order=np.inf, noise=0.5, misfit=0.0, epsilon=0.5).holds


@pytest.mark.parametrize("seed", range(4))
def test_constants_against_sampling(seed):
    matrix = np.random.default_rng(seed).standard_normal((9, 3))
    a = np.random.default_rng(seed + 9).standard_normal((3, 200_000))
    for order in (1, np.inf):
        ratios = np.linalg.norm(matrix @ a, order, axis=0) / np.linalg.norm(a, order, axis=0)
        assert norm_constant(matrix, order) <= ratios.min()
    exact = infinity_constant(matrix)
    assert norm_constant(matrix, np.inf) <= exact + 1e-12
    assert exact <= ratios.min() < 1.1 * exact  # ratios are of infinity here


def test_constant_of_rank_deficient_rows_is_zero():
    for matrix in (np.ones((5, 2)), np.ones((1, 2)), np.zeros((3, 2))):
        assert norm_constant(matrix, 1) == 0 and infinity_constant(matrix) == 0
        bound = bound_error(matrix, order=1, noise=0.1, misfit=0, epsilon=1)
        assert bound.lemma == np.inf and not bound.holds


def test_inpainting():
    network = generator((5, 30, 200))
    z = torch.randn(1, 5)
    x = network(z)[0]
    known = torch.rand(200) > 0.4
    part = observe_part(network, known)
    assert torch.allclose(part(z)[0], x[known])
    found = invert_network(part, x[known])
    assert float((found.z - z[0]).abs().max()) < 1e-8
    assert torch.allclose(network(found.z[None])[0], x)


def test_sensing_through_and_after_the_activation():
    z = torch.randn(3, 5)
    blur = torch.randn(80, 60)
    linear = generator((5, 20, 60), last=False)
    merged = sense(linear, blur.numpy())
    assert len(merged.layers) == 2
    assert torch.allclose(merged(z), linear(z) @ blur.mT)
    found = invert_network(merged, merged(z)[0])
    assert float((found.z - z[0]).abs().max()) < 1e-8
    relu = generator((5, 20, 60))
    after = sense(relu, blur.numpy())
    assert len(after.layers) == 3
    assert torch.allclose(after(z), relu(z) @ blur.mT)
    found = invert_network(after, after(z)[0])
    assert float((found.z - z[0]).abs().max()) < 1e-7
    weights = np.diag(np.linspace(0, 2, 60))
    assert torch.allclose(sense(relu, weights)(z), relu(z) * torch.linspace(0, 2, 60))
    assert len(sense(relu, weights).layers) == 2
    assert len(sense(relu, -weights).layers) == 3  # a negative factor doesn't pass a ReLU


@pytest.mark.parametrize("last", [False, True])
def test_measured_networks_are_differentiable_and_know_their_transpose(last):
    """Gradient descent is the baseline for them, too."""
    network = sense(generator((3, 12, 20), last=last), torch.randn(9, 20).numpy())
    layer = network.layers[-1]
    x, u = torch.randn(4, layer.affine.in_size), torch.randn(4, 9)
    dense = torch.from_numpy(layer.affine.dense())
    torch.testing.assert_close(layer.affine.product(x), x @ dense.mT)
    torch.testing.assert_close(layer.affine.adjoint(u), u @ dense)
    assert torch.autograd.gradcheck(layer.affine.product, (x.requires_grad_(),))
    z = torch.randn(2, 3)
    found = descend(network, network(z), restarts=4, steps=800, learning_rate=0.05)
    assert bool((found.error < 1e-3 * network(z).square().sum(1)).all())


def test_too_few_measurements_are_said():
    network = generator((5, 20, 60))
    few = sense(network, torch.randn(30, 60).numpy())
    assert invert_network(few, few(torch.randn(1, 5))[0]).determined == "no"


def test_a_failing_layer_ends_the_inversion():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU())
    with torch.no_grad():  # z1 <= x1 and 4 - z1 <= x2
        net[2].weight.copy_(torch.tensor([[1.0, 0, 0], [-1, 0, 0]]))
        net[2].bias.copy_(torch.tensor([0.0, 4.0]))
    network = parse_network(net)
    found = invert_network(network, np.array([1.0, 0.0]), Relaxed(), epsilon=0.5, max_steps=1)
    assert found.status == "infeasible" and found.z is None and np.isnan(found.error)
    assert len(found.layers) == 1 and error_bounds(network, found, 0.1) == ()


def test_descent_finds_the_code_of_a_well_conditioned_network():
    network = generator((5, 40, 120), 0.2)
    z = torch.randn(3, 5)
    stream = torch.Generator().manual_seed(0)
    found = descend(network, network(z), restarts=3, learning_rate=0.05, generator=stream)
    assert float((found.z - z).abs().max()) < 1e-4
    assert bool(found.converged.all()) and found.steps < 2000
    short = descend(network, network(z), steps=3, generator=stream)
    assert not bool(short.converged.any()) and short.steps == 3
    expected = (network(short.z) - network(z)).square().sum(1)
    assert torch.allclose(short.error, expected)


def test_bad_arguments():
    network = generator((3, 8, 20))
    with pytest.raises(ValueError, match="1 thresholds for 2 layers"):
        invert_network(network, np.ones(20), epsilon=[0.1])
    with pytest.raises(ValueError, match=r"gives \(20,\)"):
        invert_network(network, np.ones(3))
    with pytest.raises(ValueError, match=r"allowed is \(20,\) of bool"):
        observe_part(network, np.zeros(20, dtype=bool))
    with pytest.raises(ValueError, match="allowed is"):
        observe_part(network, np.ones(20))
    with pytest.raises(ValueError, match=r"allowed is \(r, 20\)"):
        sense(network, np.ones((3, 4)))
    with pytest.raises(ValueError, match="not finite"):
        sense(network, np.full((3, 20), np.nan))
    with pytest.raises(ValueError, match="order is 2"):
        norm_constant(np.eye(2), 2)
    with pytest.raises(ValueError, match="infinity only"):
        bound_error(np.eye(2), order=1, noise=0, misfit=0, epsilon=0, exact=True)
    with pytest.raises(ValueError, match="noise is nan"):
        bound_error(np.eye(2), order=1, noise=np.nan, misfit=0, epsilon=0)
    with pytest.raises(ValueError, match="allowed is a matrix"):
        norm_constant(np.ones(2), 1)
    with pytest.raises(ValueError, match="not finite"):
        infinity_constant(np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match=r"allowed is \(B, 20\)"):
        descend(network, torch.ones(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        descend(network, torch.full((1, 20), torch.nan))
    with pytest.raises(ValueError, match="restarts is 0"):
        descend(network, torch.ones(1, 20), restarts=0)
    with pytest.raises(NonFiniteError, match="diverged"):
        descend(network, torch.ones(1, 20), learning_rate=1e300)


def test_networks_that_are_not_piecewise_linear_are_refused():
    for module, words in (
        (nn.Sequential(nn.Linear(2, 4), nn.Sigmoid()), "Sigmoid"),
        (nn.Sequential(nn.Linear(2, 4), nn.Dropout()), "training mode"),
        (nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), "training mode"),
    ):
        with pytest.raises(UnsupportedNetworkError, match=words):
            parse_network(module)
