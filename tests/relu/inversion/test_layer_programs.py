"""The three programs, against scipy on the paper's dense form, and against their vertices."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from iresflow.relu.inversion.layer_inversion import invert_layer
from iresflow.relu.inversion.layer_programs import InfinityNorm, OneNorm, Relaxed
from iresflow.relu.networks.parsing import parse_network

SLOPES = (0.0, 0.2, 1.0)


def random_layer(seed: int, k: int, n: int, slope: float, bias: bool = True):
    torch.manual_seed(seed)
    linear = nn.Linear(k, n, bias=bias)
    nn.init.normal_(linear.weight)
    parts = [linear] if slope == 1 else [linear, nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return parse_network(nn.Sequential(*parts)).layers[0]


def noisy(layer, noise: float, k: int):
    z = torch.randn(k)
    x = layer(z[None])[0]
    return z.numpy(), (x + noise * torch.randn(len(x))).numpy()


def paper_rows(layer, x, epsilon):
    """Rows g z - r s <= h, one list entry (g, r, h) each, from the supplement's formulas."""
    weight, bias, c = layer.affine.dense(), layer.affine.bias.numpy(), layer.slope
    rows = []
    for w, b, value in zip(weight, bias, x, strict=True):
        if c == 0:
            value = max(value, 0.0)
        if value > epsilon or c == 1:
            rows += [(w, 1.0, value - b), (-w, 1.0, b - value)]
        elif c == 0:
            rows += [(w, 1.0, value - b)]
        elif value < -epsilon:
            rows += [(c * w, 1.0, value - c * b), (-c * w, 1.0, c * b - value)]
        else:  # below 0 as the supplement has it; above 0 the correction of observed_ranges
            lowest = value / c if value <= 0 else value
            rows += [(w, 1.0, value - b), (-w, 1 / c, b - lowest)]
    return rows


def plain_infinity(layer, x, epsilon):
    rows = paper_rows(layer, x, epsilon)
    k = layer.affine.in_size
    a = np.array([np.append(g, -r) for g, r, _ in rows])
    result = linprog(
        np.append(np.zeros(k), 1.0),
        A_ub=a,
        b_ub=[h for _, _, h in rows],
        bounds=[(None, None)] * k + [(0, None)],
    )
    return result.fun


def plain_one(layer, x, epsilon):
    k, n = layer.affine.in_size, len(x)
    rows, sides = [], []
    for j in range(n):
        single = parse_row(layer, j)
        for g, r, h in paper_rows(single, x[j : j + 1], epsilon):
            slack = np.zeros(n)
            slack[j] = -r
            rows.append(np.concatenate([g, slack]))
            sides.append(h)
    cost = np.append(np.zeros(k), np.ones(n))
    bounds = [(None, None)] * k + [(0, None)] * n
    return linprog(cost, A_ub=np.array(rows), b_ub=sides, bounds=bounds).fun


def parse_row(layer, j):
    linear = nn.Linear(layer.affine.in_size, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(layer.affine.dense()[j : j + 1]))
        linear.bias.copy_(layer.affine.bias[j : j + 1])
    slope = layer.slope
    parts = [linear] if slope == 1 else [linear, nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return parse_network(nn.Sequential(*parts)).layers[0]


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("seed", range(6))
def test_infinity_and_one_norm_programs_are_the_papers(slope, seed):
    layer = random_layer(seed, 5, 16, slope)
    _, x = noisy(layer, 0.2, 5)
    found = invert_layer(layer, x, InfinityNorm(), epsilon=0.3, max_steps=1)
    assert found.objective == pytest.approx(plain_infinity(layer, x, 0.3), abs=1e-8)
    found = invert_layer(layer, x, OneNorm(), epsilon=0.3, max_steps=1)
    assert found.objective == pytest.approx(plain_one(layer, x, 0.3), abs=1e-8)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("seed", range(6))
def test_all_programs_of_a_sequence_are_the_papers(slope, seed):
    layer = random_layer(seed, 4, 14, slope)
    _, x = noisy(layer, 0.3, 4)
    for method, plain in ((InfinityNorm(), plain_infinity), (OneNorm(), plain_one)):
        found = invert_layer(layer, x, method, epsilon=0.05, growth=1.5)
        for step in found.steps:
            assert step.objective == pytest.approx(plain(layer, x, step.epsilon), abs=1e-8)
        smallest = min(step.error for step in found.steps)
        assert found.error == pytest.approx(smallest, rel=1e-7)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("seed", range(6))
def test_relaxed_program_is_the_papers(slope, seed):
    layer = random_layer(seed, 4, 20, slope)
    _, x = noisy(layer, 0.1, 4)
    found = invert_layer(layer, x, Relaxed(), epsilon=0.4, max_steps=1)
    weight, bias = layer.affine.dense(), layer.affine.bias.numpy()
    if slope == 0:
        cost = -np.maximum(x, 0) @ weight
        result = linprog(
            cost, A_ub=weight, b_ub=np.maximum(x, 0) + 0.4 - bias, bounds=(None, None)
        )
    else:
        high = np.maximum(x + 0.4, 0) - bias
        low = np.minimum(x - 0.4, 0) / slope - bias
        result = linprog(
            -x @ weight,
            A_ub=np.vstack([weight, -weight]),
            b_ub=np.concatenate([high, -low]),
            bounds=(None, None),
        )
    assert result.status == 0
    assert found.objective == pytest.approx(result.fun, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_infinity_program_against_its_vertices(seed):
    layer = random_layer(seed, 2, 7, 0.0)
    _, x = noisy(layer, 0.2, 2)
    rows = paper_rows(layer, x, 0.1)
    a = np.array([np.append(g, -r) for g, r, _ in rows] + [[0, 0, -1.0]])
    h = np.array([side for _, _, side in rows] + [0.0])
    best = np.inf
    for corner in combinations(range(len(a)), 3):
        part = a[list(corner)]
        if abs(np.linalg.det(part)) < 1e-9:
            continue
        point = np.linalg.solve(part, h[list(corner)])
        if (a @ point <= h + 1e-9).all():
            best = min(best, point[2])
    found = invert_layer(layer, x, epsilon=0.1, max_steps=1)
    assert found.objective == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("method", [InfinityNorm(), OneNorm(), Relaxed()], ids=lambda m: m.name)
def test_lower_limits_are_kept_and_cost_something(method):
    layer = random_layer(3, 6, 30, 0.0)
    _, x = noisy(layer, 0.1, 6)
    free = invert_layer(layer, x, method, epsilon=0.2, max_steps=1)
    bounded = invert_layer(layer, x, method, epsilon=0.2, max_steps=1, lower=0.0)
    assert float(free.z.min()) < -0.01
    assert float(bounded.z.min()) > -1e-8
    assert bounded.objective > free.objective
