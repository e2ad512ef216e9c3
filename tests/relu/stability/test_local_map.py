"""Linearisations against finite differences, their spectra against plain SVDs, and bounds."""

import numpy as np
import pytest
import torch
from torch import nn

from iresflow.errors import SpectrumError
from iresflow.relu import parse_network
from iresflow.relu.stability.local_map import (
    extreme_singular_values,
    image_window,
    linearize,
    singular_values,
)
from iresflow.relu.stability.removed_rows import (
    correlation_bound,
    correlation_counts,
    removal_bounds,
    spectrum_behind,
)

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
    local = linearize(parse_network(module, shape), x)
    near = x + 1e-3 * local.margin * torch.randn(20, *shape)
    matrices = dict(local.matrices())
    assert len(local.stages) == len(matrices) == len(parts(module))
    for stage, part in zip(local.stages, parts(module), strict=True):
        matrix = matrices[stage]
        expected = part(near).detach().flatten(1)
        assert matrix.shape == (stage.size, x.numel()) == (expected.shape[1], x.numel())
        by_map = near.flatten(1) @ matrix.mT + local.offset(stage)
        torch.testing.assert_close(by_map, expected, rtol=0, atol=1e-12)
        jacobian = torch.autograd.functional.jacobian(lambda v, p=part: p(v[None])[0].flatten(), x)
        torch.testing.assert_close(matrix, jacobian.flatten(1))
        torch.testing.assert_close(local.matrix(stage), matrix)


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_products_are_those_of_the_matrix(kind):
    module, shape = small(kind)
    network = parse_network(module, shape)
    columns = torch.tensor([0, 2, 5])
    local = linearize(network, torch.randn(shape), columns)
    whole = linearize(network, local.point)
    for stage, matrix in local.matrices():
        torch.testing.assert_close(matrix, whole.matrix(stage)[:, columns])
        v, u = torch.randn(4, 3), torch.randn(4, stage.size)
        torch.testing.assert_close(local.product(v, stage), v @ matrix.mT)
        torch.testing.assert_close(local.adjoint(u, stage), u @ matrix)


def test_margin_is_zero_on_the_border_of_a_polytope():
    module = nn.Linear(3, 2, bias=False)
    network = parse_network(nn.Sequential(module, nn.ReLU()))
    inside = linearize(network, torch.ones(3))
    border = linearize(network, torch.zeros(3))
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


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (40, 5), (5, 5)])
def test_singular_values(shape):
    matrix = torch.randn(shape)
    np.testing.assert_allclose(singular_values(matrix).values, torch.linalg.svdvals(matrix))
    found = singular_values(matrix)
    assert found.count == min(shape)
    assert found.condition == pytest.approx(float(torch.linalg.cond(matrix)))


def test_condition_counts_the_non_zero_ones_only():
    matrix = torch.zeros(6, 5)
    matrix[1, 2], matrix[4, 0] = 3.0, 1.5
    found = singular_values(matrix)
    np.testing.assert_allclose(found.values, [3, 1.5, 0, 0, 0])
    assert (found.count, found.condition) == (2, 2.0)
    low_rank = torch.randn(30, 3) @ torch.randn(3, 8)
    assert singular_values(low_rank).count == np.linalg.matrix_rank(low_rank) == 3
    empty = singular_values(torch.zeros(3, 4))
    assert empty.count == 0 and np.isnan(empty.condition)
    with pytest.raises(ValueError, match="not finite"):
        singular_values(torch.tensor([[torch.inf]]))


@pytest.mark.parametrize("kind", ["dense", "convolutional"])
def test_extremes_without_a_matrix(kind):
    module, shape = small(kind)
    local = linearize(parse_network(module, shape), torch.randn(shape))
    for stage, matrix in local.matrices():
        rows = matrix
        if stage.activated:
            rows = matrix[local.slopes[stage.layer] > 0]
        values = torch.linalg.svdvals(rows)
        smallest, largest = extreme_singular_values(local, stage)
        assert largest == pytest.approx(float(values[0]), rel=1e-6)
        assert smallest == pytest.approx(float(values[-1]), rel=1e-5, abs=1e-7)


def test_extremes_say_when_they_did_not_converge():
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(60, 60, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(60, 60, generator=generator))
    local = linearize(parse_network(module), torch.zeros(60))
    with pytest.raises(SpectrumError, match="did not converge"):
        extreme_singular_values(local, local.stages[0], iterations=1)


def test_refuses():
    network = parse_network(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    with pytest.raises(ValueError, match="inputs have shape"):
        linearize(network, torch.zeros(4))
    with pytest.raises(ValueError, match="not finite"):
        linearize(network, torch.tensor([0.0, torch.nan, 1]))
    with pytest.raises(ValueError, match="columns"):
        linearize(network, torch.zeros(3), torch.tensor([3]))


def random_removal(generator):
    rows, columns = generator.integers(2, 12, 2)
    matrix = generator.standard_normal((rows, columns))
    if generator.random() < 0.3:  # dependent rows
        matrix = matrix[:, :1] @ generator.standard_normal((1, columns))
    if generator.random() < 0.3:
        matrix[0] = 0
    return matrix, generator.random(rows) < generator.random()


def test_lemma_on_removal_holds_for_random_matrices():
    generator = np.random.default_rng(0)
    finite = 0
    for _ in range(400):
        matrix, removed = random_removal(generator)
        before, behind = singular_values(matrix), spectrum_behind(matrix, removed)
        smallest, largest = removal_bounds(before, int(removed.sum()))
        finite += np.isfinite(smallest)
        if behind.count:
            assert behind.positive[-1] <= smallest * (1 + 1e-9)
            assert behind.positive[0] <= largest * (1 + 1e-9)
    assert finite > 100


def test_lemma_on_correlations_holds_for_random_matrices():
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        matrix, removed = random_removal(generator)
        bound = correlation_bound(matrix, removed)
        if bound.row is None:
            continue
        found += 1
        assert removed[bound.row]
        smallest = spectrum_behind(matrix, removed).positive[-1]
        assert smallest <= bound.direct * (1 + 1e-9) <= bound.c * (1 + 1e-9)
    assert found > 50


def test_lemma_on_correlations_needs_its_condition():
    """Without the removed row in the span of the others, the bound would be wrong."""
    matrix, removed = np.eye(3), np.array([True, False, False])
    assert correlation_bound(matrix, removed).row is None
    assert spectrum_behind(matrix, removed).positive[-1] == 1  # and the correlations are 0


def test_counts_by_hand():
    matrix = np.array([[2.0, 0], [1, 1], [0, 3], [0.5, 0], [0, 1]])
    removed = np.array([True, False, False, False, True])
    # Correlations of the rows left with the removed ones: (1, 0, 0.5) and (1, 3, 0), times sqrt 3.
    grid = np.array([-1, 0, 0.8, 0.9, 1.7, 1.8, 5.1, 5.2])
    counts = correlation_counts(matrix, removed, grid)
    assert counts.tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert correlation_bound(matrix, removed).c == pytest.approx(np.sqrt(3))
    none = correlation_counts(matrix, np.zeros(5, dtype=bool), grid)
    assert none.tolist() == [0] * 8


def test_counting_refuses():
    with pytest.raises(ValueError, match="bools"):
        correlation_counts(np.eye(3), np.ones(2, dtype=bool), np.ones(1))
    with pytest.raises(ValueError, match="removed=-1"):
        removal_bounds(singular_values(np.eye(2)), -1)
