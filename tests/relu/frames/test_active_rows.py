"""Frames at points, against singular values of the active rows one by one."""

import pytest
import torch
from torch import nn

from iresflow.relu.frames.active_rows import (
    active_frame,
    active_rows,
    frame_bounds,
    frame_of_layer,
    is_alpha_rectifying,
)

# Three unit vectors at 120 degrees: a tight frame of the plane, any two of them a basis.
MERCEDES = torch.tensor(
    [[0.0, 1.0], [-(3**0.5) / 2, -0.5], [3**0.5 / 2, -0.5]], dtype=torch.float64
)


def random_frame(seed: int, m: int, n: int, points: int):
    torch.manual_seed(seed)
    return torch.randn(m, n), 0.3 * torch.randn(m), torch.randn(points, n)


def test_active_rows_by_hand():
    up = torch.tensor([0.0, 1.0])
    assert active_rows(MERCEDES, torch.zeros(3), up[None]).tolist() == [[True, False, False]]
    # The coefficients are 1, -1/2, -1/2; a row counts as active on its boundary.
    alpha = torch.tensor([1.0, -0.5, -0.4])
    assert active_frame(MERCEDES, alpha, up).equal(MERCEDES[:2])


def test_sign_of_the_bias_is_that_of_the_paper():
    layer = nn.Linear(4, 9)
    weight, alpha = frame_of_layer(layer)
    x = torch.randn(50, 4)
    assert active_rows(weight, alpha, x).equal(layer(x) >= 0)
    assert torch.allclose((x @ weight.mT - alpha).relu(), layer(x).relu())
    no_bias = frame_of_layer(nn.Linear(4, 9, bias=False))
    assert no_bias[1].equal(torch.zeros(9))


def test_mercedes_frame_is_rectifying_only_below_its_bias():
    x = torch.randn(200, 2)
    x /= x.norm(dim=1, keepdim=True)
    # At any unit vector the second largest coefficient is at least -1/2.
    assert bool(is_alpha_rectifying(MERCEDES, torch.full((3,), -0.5), x).rectifying.all())
    bounds = is_alpha_rectifying(MERCEDES, torch.zeros(3), x)
    assert 0 < int(bounds.rectifying.sum()) < 200
    assert bounds.rectifying.equal(bounds.active >= 2)
    assert not bool(bounds.uncertain.any())


@pytest.mark.parametrize("seed", range(5))
def test_bounds_are_the_singular_values_of_the_active_rows(seed):
    weight, alpha, x = random_frame(seed, 11, 5, 40)
    bounds = frame_bounds(weight, alpha, x)
    for i in range(len(x)):
        rows = active_frame(weight, alpha, x[i])
        assert int(bounds.active[i]) == len(rows)
        values = torch.linalg.svdvals(rows) if len(rows) else torch.zeros(1)
        lower = values[-1] if len(rows) >= 5 else torch.tensor(0.0)
        assert abs(float(bounds.lower[i] - lower)) < 1e-10
        assert abs(float(bounds.upper[i] - values[0])) < 1e-10
    assert bounds.a0 == float(bounds.lower.min())
    assert bounds.b0 == float(bounds.upper.max())


def test_many_rows_that_span_too_little_are_no_frame():
    weight = torch.randn(20, 3) @ torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    bounds = is_alpha_rectifying(weight, torch.full((20,), -torch.inf), torch.randn(4, 3))
    assert bool((bounds.active == 20).all())  # the counting of Lemma 2.9 would say yes
    assert not bool((bounds.rectifying | bounds.uncertain).any())


def test_rank_within_the_tolerance_is_called_uncertain():
    weight = torch.eye(3)
    weight[2, 2] = 1e-9
    bounds = is_alpha_rectifying(weight, torch.full((3,), -9.0), torch.zeros(1, 3))
    assert bool(bounds.uncertain) and not bool(bounds.rectifying)
    assert float(bounds.lower) == pytest.approx(1e-9, rel=1e-6)
    weight[2, 2] = 1e-3
    assert bool(is_alpha_rectifying(weight, torch.full((3,), -9.0), torch.zeros(1, 3)).rectifying)


def test_no_active_row():
    bounds = frame_bounds(torch.eye(2), torch.full((2,), torch.inf), torch.randn(3, 2))
    assert bounds.upper.tolist() == [0, 0, 0]
    assert not bool((bounds.rectifying | bounds.uncertain).any())


def test_linearised_layer_has_these_singular_values():
    weight, alpha, x = random_frame(9, 12, 4, 6)
    bounds = frame_bounds(weight, alpha, x)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda p: (weight @ p - alpha).relu(), x[i])
        values = torch.linalg.svdvals(jacobian)
        assert abs(float(bounds.lower[i] - values[-1])) < 1e-10
        assert abs(float(bounds.upper[i] - values[0])) < 1e-10


@pytest.mark.parametrize(
    ("weight", "alpha", "x", "words"),
    [
        (torch.ones(3), torch.ones(3), torch.ones(1, 3), r"W has shape \(3,\)"),
        (torch.ones(3, 2), torch.ones(2), torch.ones(1, 2), r"alpha \(2,\)"),
        (torch.ones(3, 2), torch.ones(3), torch.ones(1, 3), r"allowed is \(B, 2\)"),
        (torch.ones(3, 2), torch.ones(3), torch.ones(0, 2), "B >= 1"),
        (torch.full((3, 2), torch.nan), torch.ones(3), torch.ones(1, 2), "not finite"),
        (torch.ones(3, 2), torch.full((3,), torch.nan), torch.ones(1, 2), "NaN"),
        (torch.ones(3, 2), torch.ones(3), torch.full((1, 2), torch.inf), "not finite"),
    ],
)
def test_bad_arguments(weight, alpha, x, words):
    with pytest.raises(ValueError, match=words):
        frame_bounds(weight, alpha, x)


def test_bad_layer_point_and_tolerance():
    with pytest.raises(ValueError, match="Conv2d; allowed is Linear"):
        frame_of_layer(nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match=r"allowed is \(n,\)"):
        active_frame(torch.eye(2), torch.zeros(2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="tolerance is 1e-09"):
        frame_bounds(torch.eye(2), torch.zeros(2), torch.zeros(1, 2), tolerance=1e-9)
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        frame_of_layer(broken)
