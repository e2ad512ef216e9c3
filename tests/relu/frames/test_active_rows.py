"""Frames at points, against singular values of the active rows one by one."""

import pytest
import torch
from torch import nn

from iresflow.relu import dense_layer, parse_network
from iresflow.relu.frames.active_rows import active_rows, frame_bounds, frame_on_box

# Three unit vectors at 120 degrees: a tight frame of the plane, any two of them a basis.
MERCEDES = torch.tensor(
    [[0.0, 1.0], [-(3**0.5) / 2, -0.5], [3**0.5 / 2, -0.5]], dtype=torch.float64
)


def frame(weight, alpha):
    """The layer max(0, W x - alpha)."""
    return dense_layer(weight, -torch.as_tensor(alpha))


def random_frame(seed: int, m: int, n: int, points: int):
    torch.manual_seed(seed)
    return torch.randn(m, n), 0.3 * torch.randn(m), torch.randn(points, n)


def test_active_rows_by_hand():
    up = torch.tensor([0.0, 1.0])
    assert active_rows(frame(MERCEDES, torch.zeros(3)), up[None]).tolist() == [
        [True, False, False]
    ]
    # The coefficients are 1, -1/2, -1/2; a row counts as active on its boundary.
    alpha = torch.tensor([1.0, -0.5, -0.4])
    assert active_rows(frame(MERCEDES, alpha), up[None]).tolist() == [[True, True, False]]


def test_sign_of_the_bias_is_that_of_the_paper():
    linear = nn.Linear(4, 9)
    x = torch.randn(50, 4)
    layer = parse_network(nn.Sequential(linear, nn.ReLU())).layers[0]
    assert active_rows(layer, x).equal(linear(x) >= 0)
    assert active_rows(frame(linear.weight, -linear.bias), x).equal(linear(x) >= 0)


def test_mercedes_frame_is_rectifying_only_below_its_bias():
    x = torch.randn(200, 2)
    x /= x.norm(dim=1, keepdim=True)
    # At any unit vector the second largest coefficient is at least -1/2.
    assert bool(frame_bounds(frame(MERCEDES, torch.full((3,), -0.5)), x).rectifying.all())
    bounds = frame_bounds(frame(MERCEDES, torch.zeros(3)), x)
    assert 0 < int(bounds.rectifying.sum()) < 200
    assert bounds.rectifying.equal(bounds.active >= 2)
    assert not bool(bounds.uncertain.any())


@pytest.mark.parametrize("seed", range(5))
def test_bounds_are_the_singular_values_of_the_active_rows(seed):
    weight, alpha, x = random_frame(seed, 11, 5, 40)
    bounds = frame_bounds(frame(weight, alpha), x)
    for i in range(len(x)):
        rows = weight[active_rows(frame(weight, alpha), x[i : i + 1])[0]]
        assert int(bounds.active[i]) == len(rows)
        values = torch.linalg.svdvals(rows) if len(rows) else torch.zeros(1)
        lower = values[-1] if len(rows) >= 5 else torch.tensor(0.0)
        assert abs(float(bounds.lower[i] - lower)) < 1e-10
        assert abs(float(bounds.upper[i] - values[0])) < 1e-10


def test_many_rows_that_span_too_little_are_no_frame():
    weight = torch.randn(20, 3) @ torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    bounds = frame_bounds(frame(weight, torch.full((20,), -torch.inf)), torch.randn(4, 3))
    assert bool((bounds.active == 20).all())  # the counting of Lemma 2.9 would say yes
    assert not bool((bounds.rectifying | bounds.uncertain).any())


def test_rank_within_the_tolerance_is_called_uncertain():
    weight = torch.eye(3)
    weight[2, 2] = 1e-9
    bounds = frame_bounds(frame(weight, torch.full((3,), -9.0)), torch.zeros(1, 3))
    assert bool(bounds.uncertain) and not bool(bounds.rectifying)
    assert float(bounds.lower) == pytest.approx(1e-9, rel=1e-6)
    weight[2, 2] = 1e-3
    assert bool(frame_bounds(frame(weight, torch.full((3,), -9.0)), torch.zeros(1, 3)).rectifying)


def test_no_active_row():
    bounds = frame_bounds(frame(torch.eye(2), torch.full((2,), torch.inf)), torch.randn(3, 2))
    assert bounds.upper.tolist() == [0, 0, 0]
    assert not bool((bounds.rectifying | bounds.uncertain).any())


def test_linearised_layer_has_these_singular_values():
    weight, alpha, x = random_frame(9, 12, 4, 6)
    bounds = frame_bounds(frame(weight, alpha), x)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda p: (weight @ p - alpha).relu(), x[i])
        values = torch.linalg.svdvals(jacobian)
        assert abs(float(bounds.lower[i] - values[-1])) < 1e-10
        assert abs(float(bounds.upper[i] - values[0])) < 1e-10


@pytest.mark.parametrize(
    ("weight", "alpha", "x", "words"),
    [
        (torch.ones(3), torch.ones(3), torch.ones(1, 3), r"W has shape \(3,\)"),
        (torch.ones(3, 2), torch.ones(2), torch.ones(1, 2), r"b \(2,\)"),
        (torch.ones(3, 2), torch.ones(3), torch.ones(1, 3), r"allowed is \(B, 2\)"),
        (torch.ones(3, 2), torch.ones(3), torch.ones(0, 2), "B >= 1"),
        (torch.full((3, 2), torch.nan), torch.ones(3), torch.ones(1, 2), "not finite"),
        (torch.ones(3, 2), torch.full((3,), torch.nan), torch.ones(1, 2), "NaN"),
        (torch.ones(3, 2), torch.ones(3), torch.full((1, 2), torch.inf), "not finite"),
    ],
)
def test_bad_arguments(weight, alpha, x, words):
    with pytest.raises(ValueError, match=words):
        frame_bounds(frame(weight, alpha), x)


def test_bad_layer_and_point():
    leaky = dense_layer(torch.eye(2), slope=0.1)
    with pytest.raises(ValueError, match=r"negative slope 0\.1; allowed is 0"):
        frame_bounds(leaky, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"allowed is \(B, 2\)"):
        active_rows(dense_layer(torch.eye(2)), torch.zeros(1, 3))


def test_ties_are_no_frame_beyond_doubt():
    """At 0 all rows of a layer without bias are ties: the output shows none of them."""
    layer = dense_layer(torch.randn(9, 3))
    bounds = frame_bounds(layer, torch.zeros(1, 3))
    assert bool(active_rows(layer, torch.zeros(1, 3)).all())  # as Definition 2.5 has it
    assert (int(bounds.active), int(bounds.ties)) == (0, 9)
    assert bool(bounds.uncertain) and not bool(bounds.rectifying)
    assert float(bounds.lower) == 0 == float(bounds.upper)
    # A row that a basis doesn't need may be one.
    more = frame_bounds(dense_layer(torch.tensor([[1.0, 0], [0, 1], [1, -1]])), torch.ones(1, 2))
    assert (int(more.active), int(more.ties)) == (2, 1)
    assert bool(more.rectifying) and not bool(more.uncertain)
    # And one that rounding alone makes active is none either: 0.1 + 0.2 is not 0.3.
    near = frame_bounds(
        dense_layer(torch.tensor([[1.0, 1.0], [0, 1]]), torch.tensor([-0.3, 1.0])),
        torch.tensor([[0.1, 0.2]]),
    )
    assert (int(near.active), int(near.ties)) == (1, 1)
    assert bool(near.uncertain) and not bool(near.rectifying)


def test_a_frame_on_a_box_is_active_in_all_of_it():
    torch.manual_seed(2)
    weight, bias = torch.randn(40, 4), torch.rand(40)
    layer = dense_layer(weight, bias)
    low, high = -0.2 * torch.ones(4), 0.1 + 0.2 * torch.rand(4)
    spectrum = frame_on_box(layer, low, high)
    assert spectrum.spans(4) == "yes"
    # Theorem 2.7: invertible on the box, here with the smallest value as a Lipschitz bound.
    x, y = (low + (high - low) * torch.rand(2000, 4) for _ in range(2))
    stretch = (layer(x) - layer(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(stretch.min()) >= float(spectrum.values[-1])
    # The rows are those that are active at all corners, by enumeration.
    corners = torch.cartesian_prod(*torch.stack([low, high], 1))
    always = (layer.affine(corners) > 0).all(0)
    torch.testing.assert_close(spectrum.values, torch.linalg.svdvals(weight[always]))
    # On a box that is large no row is active everywhere.
    assert frame_on_box(layer, -9 * torch.ones(4), 9 * torch.ones(4)).spans(4) == "no"
    with pytest.raises(ValueError, match="above its upper"):
        frame_on_box(layer, high, low)
