"""Bias estimation, against a loop over points that follows the paper line by line."""

import math

import pytest
import torch

from iresflow.relu import dense_layer
from iresflow.relu.frames.active_rows import active_rows, frame_bounds
from iresflow.relu.frames.bias_estimation import (
    InjectivityPenalty,
    estimate_bias,
    maximal_bias,
    share_of_biases,
    share_of_points,
)


def by_the_paper(weight, points):
    """Section 3.2, one point after the other."""
    alpha = [math.inf] * len(weight)
    for x in points:
        coefficients = (weight @ x).tolist()
        largest = sorted(range(len(weight)), key=lambda j: -coefficients[j])[: weight.shape[1]]
        for j in largest:
            alpha[j] = min(alpha[j], coefficients[j])
    return torch.tensor(alpha)


@pytest.mark.parametrize("seed", range(4))
def test_maximal_bias_is_the_papers(seed):
    torch.manual_seed(seed)
    weight, x = torch.randn(9, 4), torch.randn(30, 4)
    assert torch.allclose(
        maximal_bias(dense_layer(weight), x), by_the_paper(weight, x), atol=1e-12
    )


@pytest.mark.parametrize("seed", range(4))
def test_theorem_3_1(seed):
    torch.manual_seed(seed)
    weight, x = torch.randn(10, 3), torch.randn(50, 3)
    alpha = maximal_bias(dense_layer(weight), x)
    # The paper's claim, on its own points: rounding aside, at alpha* and anywhere below it.
    for below in (1e-12, 0.7):
        assert bool(frame_bounds(dense_layer(weight, below - alpha), x).rectifying.all())


def test_maximal_bias_is_maximal_for_one_point():
    weight, x = torch.randn(7, 3), torch.randn(1, 3)
    alpha = maximal_bias(dense_layer(weight), x)
    assert int((alpha < math.inf).sum()) == 3
    finite = (alpha < math.inf).nonzero()[:, 0]
    for j in finite:
        more = alpha.clone()
        more[j] += 1e-6
        assert (
            int(active_rows(dense_layer(weight, -more), x).sum()) == 2
        )  # one row short: no frame


def test_monte_carlo_without_noise_finds_the_bias_of_the_data():
    weight, data = torch.randn(12, 4), torch.randn(25, 4)
    found = estimate_bias(
        dense_layer(weight), data, sigma=0, patience=600, batch_size=32, progress=False
    )
    assert found.converged and found.unchanged >= 600
    assert torch.allclose(found.alpha, maximal_bias(dense_layer(weight), data), atol=1e-12)


def test_batches_draw_what_the_sequential_algorithm_would():
    weight, data = torch.randn(8, 3), torch.randn(20, 3)
    stream = torch.Generator().manual_seed(5)
    found = estimate_bias(
        dense_layer(weight),
        data,
        sigma=0.2,
        patience=100,
        batch_size=64,
        generator=stream,
        progress=False,
    )
    stream = torch.Generator().manual_seed(5)
    points, last, alpha = [], 0, torch.full((8,), math.inf)
    while len(points) < found.samples:
        index = torch.randint(20, (64,), generator=stream)
        noise = torch.randn(64, 3, generator=stream)
        points += list(data[index] + 0.2 * noise)
    for i, x in enumerate(points):
        new = torch.minimum(alpha, by_the_paper(weight, [x]))
        if not new.equal(alpha):
            last, alpha = i + 1, new
    assert torch.allclose(found.alpha, alpha, atol=1e-12)
    assert found.samples - last == found.unchanged


def test_smoothing_lowers_the_bias_and_covers_new_points():
    torch.manual_seed(3)
    weight, data = torch.randn(16, 4), torch.randn(40, 4)
    plain = maximal_bias(dense_layer(weight), data)
    stream = torch.Generator().manual_seed(0)
    smooth = estimate_bias(
        dense_layer(weight), data, sigma=0.3, patience=2000, generator=stream, progress=False
    )
    near = data.repeat(20, 1) + 0.3 * torch.randn(800, 4)
    share = share_of_points(dense_layer(weight, -smooth.alpha), near)
    assert share > 0.995
    # The control: the bias of the bare points keeps fewer of the new ones.
    assert share_of_points(dense_layer(weight, -plain), near) < share - 0.02


def test_estimate_says_when_it_has_not_converged():
    weight, data = torch.randn(12, 4), torch.randn(25, 4)
    found = estimate_bias(
        dense_layer(weight),
        data,
        sigma=0.5,
        patience=500,
        batch_size=64,
        max_samples=100,
        progress=False,
    )
    assert found.samples == 100 and not found.converged


def test_a_row_that_is_never_needed_has_no_limit():
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    alpha = maximal_bias(dense_layer(weight), torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
    assert alpha.tolist() == [1.0, 0.5, math.inf]
    assert share_of_biases(torch.tensor([1.0, 0.6, 99.0]), alpha) == pytest.approx(2 / 3)


def test_share_of_points_counts():
    weight, alpha = torch.eye(2), torch.zeros(2)
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]])
    assert share_of_points(dense_layer(weight, -alpha), x) == 0.5


def test_penalty_is_the_formula_and_its_gradient_differences():
    torch.manual_seed(0)
    penalty = InjectivityPenalty(6)
    star = torch.randn(6)
    star[2] = math.inf
    penalty.update(star)
    alpha = torch.randn(6, requires_grad=True)
    excess = [max(0.0, a - s) for a, s in zip(alpha.tolist(), star.tolist(), strict=True)]
    expected = math.hypot(*excess)
    assert float(penalty(alpha).detach()) == pytest.approx(expected)
    assert torch.autograd.gradcheck(penalty, (alpha,))
    (gradient,) = torch.autograd.grad(penalty(alpha), alpha)
    assert gradient[alpha < star].abs().max() == 0


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_penalty_keeps_all_digits_of_its_limits(default, dtype):
    """0.1 as float32 is 1.5e-9 more: a bias of just that would seem to be at its limit."""
    torch.set_default_dtype(default)
    penalty = InjectivityPenalty(1)
    penalty.update(torch.tensor([0.1], dtype=torch.float64))
    alpha = torch.tensor([0.1], dtype=torch.float32).to(dtype).requires_grad_()
    value = penalty(alpha)
    excess = float(alpha.detach()) - 0.1
    assert 1e-9 < excess == pytest.approx(float(value.detach()), rel=1e-6)
    assert value.dtype == dtype and torch.autograd.grad(value, alpha)[0].item() == 1
    penalty.update(torch.tensor([float(alpha.detach())], dtype=torch.float64))
    assert float(penalty(alpha).detach()) == 0


def test_penalty_is_flat_where_nothing_is_exceeded():
    penalty = InjectivityPenalty(3)
    alpha = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(alpha), alpha)
    assert gradient.equal(torch.zeros(3))  # not NaN, as 0 / 0 would be


def test_penalty_makes_a_layer_injective_on_its_data():
    torch.manual_seed(1)
    layer = torch.nn.Linear(4, 12)
    torch.nn.init.constant_(layer.bias, -1.0)
    data = torch.randn(60, 4)
    weight = layer.weight.detach()
    before = share_of_points(dense_layer(weight, layer.bias.detach()), data)
    penalty = InjectivityPenalty(12)
    penalty.update(maximal_bias(dense_layer(weight), data) - 1e-3)
    optimizer = torch.optim.SGD([layer.bias], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        penalty(-layer.bias).backward()
        optimizer.step()
    # The step is of constant length as a norm's gradient is, so it ends one step short or past.
    alpha = -layer.bias.detach() - 0.05
    assert before < 0.9
    assert share_of_points(dense_layer(weight, -alpha), data) == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.randn(3, 4)}, "3 rows for 4 dimensions"),
        ({"data": torch.randn(5, 3)}, r"allowed is \(B, 4\)"),
        ({"data": torch.full((5, 4), math.nan)}, "not finite"),
        ({"sigma": -1.0}, "sigma is -1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"patience": 0}, "patience is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_samples": 0}, "max_samples is 0"),
    ],
)
def test_bad_arguments(change, words):
    arguments = {
        "weight": torch.randn(8, 4),
        "data": torch.randn(5, 4),
        "sigma": 0.1,
        "patience": 10,
        "progress": False,
    } | change
    with pytest.raises(ValueError, match=words):
        estimate_bias(dense_layer(arguments.pop("weight")), arguments.pop("data"), **arguments)


def test_bad_measures_and_penalties():
    with pytest.raises(ValueError, match="allowed is"):
        share_of_biases(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        share_of_biases(torch.zeros(2), torch.full((2,), math.nan))
    with pytest.raises(ValueError, match="units is 0"):
        InjectivityPenalty(0)
    with pytest.raises(ValueError, match=r"allowed is \(2,\)"):
        InjectivityPenalty(2).update(torch.zeros(3))
    with pytest.raises(ValueError, match=r"allowed is \(2,\)"):
        InjectivityPenalty(2)(torch.zeros(3))
