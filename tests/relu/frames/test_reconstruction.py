"""Least squares on active rows, against numpy's lstsq point by point."""

import numpy as np
import pytest
import torch

from iresflow.relu import dense_layer
from iresflow.relu.frames.active_rows import active_rows
from iresflow.relu.frames.bias_estimation import maximal_bias
from iresflow.relu.frames.reconstruction import reconstruct


def layer(weight, alpha):
    return dense_layer(weight, -alpha)


@pytest.mark.parametrize("seed", range(4))
def test_is_the_shortest_least_squares_solution(seed):
    torch.manual_seed(seed)
    weight, alpha, x = torch.randn(10, 6), 0.4 * torch.randn(10), torch.randn(40, 6)
    z = layer(weight, alpha)(x)
    found = reconstruct(layer(weight, alpha), z)
    assert 0 < int(found.determined.sum()) < 40  # both kinds occur
    for i in range(40):
        on = (z[i] > 0).numpy()
        rows, side = weight.numpy()[on], (z[i] + alpha).numpy()[on]
        oracle, _, rank, _ = np.linalg.lstsq(rows, side)
        assert np.abs(found.x[i].numpy() - oracle).max() < 1e-8
        assert int(found.rank[i]) == rank
    assert float(found.residual.max()) < 1e-9
    exact = (found.x - x).abs().amax(1) < 1e-7
    assert exact.equal(found.determined)


def test_is_exact_below_the_estimated_bias():
    weight, x = torch.randn(24, 8), torch.randn(100, 8)
    alpha = maximal_bias(dense_layer(weight), x) - 1e-6
    alpha[alpha.isinf()] = 5.0
    found = reconstruct(layer(weight, alpha), layer(weight, alpha)(x))
    assert bool(found.determined.all())
    assert float((found.x - x).abs().max()) < 1e-6


def test_points_of_one_pattern_share_a_decomposition():
    weight, alpha = torch.randn(9, 3), torch.full((9,), -50.0)
    x = torch.randn(500, 3)
    assert len(torch.unique(active_rows(layer(weight, alpha), x), dim=0)) == 1
    found = reconstruct(layer(weight, alpha), layer(weight, alpha)(x))
    assert float((found.x - x).abs().max()) < 1e-9


def test_ill_conditioned_rows_are_refined():
    weight = torch.randn(12, 4) @ torch.diag(torch.tensor([1.0, 1e-1, 1e-2, 1e-5]))
    alpha, x = torch.full((12,), -50.0), torch.randn(20, 4)
    found = reconstruct(layer(weight, alpha), layer(weight, alpha)(x))
    # The data's own rounding, times the condition number of 1e5.
    assert float((found.x - x).abs().max()) < 50 * 2.2e-16 * 1e5 * 10


def test_nothing_active_gives_nothing():
    found = reconstruct(dense_layer(torch.randn(5, 2)), torch.zeros(3, 5))
    assert found.x.equal(torch.zeros(3, 2)) and found.rank.tolist() == [0, 0, 0]


def test_an_output_of_another_layer_leaves_a_residual():
    weight, alpha = torch.randn(12, 3), torch.zeros(12)
    z = torch.rand(4, 12)
    assert bool((reconstruct(layer(weight, alpha), z).residual > 1e-3).all())


@pytest.mark.parametrize(
    ("z", "alpha", "words"),
    [
        (torch.zeros(1, 3), torch.zeros(4), r"allowed is \(B, 4\)"),
        (torch.zeros(0, 4), torch.zeros(4), r"allowed is \(B, 4\)"),
        (-torch.ones(1, 4), torch.zeros(4), "none of ReLU"),
        (torch.full((1, 4), torch.nan), torch.zeros(4), "not finite"),
        (torch.ones(1, 4), torch.full((4,), torch.inf), "bias is infinite"),
        (torch.ones(1, 4), torch.zeros(3), "allowed are"),
    ],
)
def test_bad_arguments(z, alpha, words):
    with pytest.raises(ValueError, match=words):
        reconstruct(layer(torch.randn(4, 2), alpha), z)
