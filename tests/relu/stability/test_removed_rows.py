"""What removed rows do to singular values: two lemmas on random matrices, and by hand."""

import numpy as np
import pytest
import torch

from iresflow.relu import singular_values
from iresflow.relu.stability.removed_rows import (
    correlation_bound,
    correlation_counts,
    removal_bounds,
)


def without(matrix, removed):
    return singular_values(torch.where(removed[:, None], 0.0, matrix))


def random_removal(generator):
    rows, columns = generator.integers(2, 12, 2)
    matrix = generator.standard_normal((rows, columns))
    if generator.random() < 0.3:  # dependent rows
        matrix = matrix[:, :1] @ generator.standard_normal((1, columns))
    if generator.random() < 0.3:
        matrix[0] = 0
    removed = generator.random(rows) < generator.random()
    return torch.from_numpy(matrix), torch.from_numpy(removed)


def test_lemma_on_removal_holds_for_random_matrices():
    generator = np.random.default_rng(0)
    finite = 0
    for _ in range(400):
        matrix, removed = random_removal(generator)
        before, after = singular_values(matrix), without(matrix, removed)
        smallest, largest = removal_bounds(before, int(removed.sum()))
        finite += np.isfinite(smallest)
        if after.count:
            assert after.positive[-1] <= smallest * (1 + 1e-9)
            assert after.positive[0] <= largest * (1 + 1e-9)
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
        smallest = without(matrix, removed).positive[-1]
        assert smallest <= bound.direct * (1 + 1e-9) <= bound.c * (1 + 1e-9)
    assert found > 50


def test_lemma_on_correlations_needs_its_condition():
    """Without the removed row in the span of the others, the bound would be wrong."""
    matrix, removed = torch.eye(3), torch.tensor([True, False, False])
    assert correlation_bound(matrix, removed).row is None
    assert without(matrix, removed).positive[-1] == 1  # and the correlations are 0


def test_counts_by_hand():
    matrix = torch.tensor([[2.0, 0], [1, 1], [0, 3], [0.5, 0], [0, 1]])
    removed = torch.tensor([True, False, False, False, True])
    # Correlations of the rows left with the removed ones: (1, 0, 0.5) and (1, 3, 0), times sqrt 3.
    grid = torch.tensor([-1, 0, 0.8, 0.9, 1.7, 1.8, 5.1, 5.2])
    counts = correlation_counts(matrix, removed, grid)
    assert counts.tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert correlation_bound(matrix, removed).c == pytest.approx(np.sqrt(3))
    none = correlation_counts(matrix, torch.zeros(5, dtype=torch.bool), grid)
    assert none.tolist() == [0] * 8


def test_counting_refuses():
    with pytest.raises(ValueError, match="bools"):
        correlation_counts(torch.eye(3), torch.ones(2, dtype=torch.bool), torch.ones(1))
    with pytest.raises(ValueError, match="removed=-1"):
        removal_bounds(singular_values(torch.eye(2)), -1)
