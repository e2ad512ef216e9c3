"""Omnidirectional matrices: hand-made ones, and random ones against enumerated directions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import sparse

from iresflow.relu.preimages.omnidirectional import is_omnidirectional

SIMPLEX = np.array([[1.0, 0], [0, 1], [-1, -1]])

HAND_MADE = {
    "simplex": (SIMPLEX, True),
    "cross": (np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), True),
    "line in one dimension": (np.array([[2.0], [-3]]), True),
    "no dimension": (np.zeros((3, 0)), True),
    "zero row beside a simplex": (np.vstack([SIMPLEX, np.zeros(2)]), True),
    "rows of very different lengths": (SIMPLEX * np.array([[1e6], [1e-6], [1.0]]), True),
    "frame and its negative": (np.vstack([np.eye(3), -np.eye(3)]), True),
    "quadrant": (np.array([[1.0, 0], [0, 1]]), False),
    "a half-space left free": (np.array([[1.0, 0], [0, 1], [-1, 0.1]]), False),
    # 0 lies in the convex hull of these, but on its boundary.
    "rows on the boundary of a half-space": (np.array([[1.0, 0], [-1, 0], [0, 1]]), False),
    "the same, turned": (
        np.array([[1.0, 0], [-1, 0], [0, 1]])
        @ np.array([[np.cos(1), np.sin(1)], [-np.sin(1), np.cos(1)]]),
        False,
    ),
    "all rows on a line": (np.array([[1.0, 1], [-1, -1], [2, 2]]), False),
    "plane in three dimensions": (np.pad(SIMPLEX, ((0, 0), (0, 1))), False),
    "no row": (np.zeros((0, 2)), False),
    "one dimension, one side": (np.array([[1.0], [2]]), False),
    "as many rows as dimensions": (np.diag([1.0, -1, 1]), False),
}


def check_certificate(matrix, found):
    if found.holds:
        assert found.weights.min() > 0
        np.testing.assert_allclose(
            matrix.T @ found.weights.numpy(), 0, atol=1e-9 * np.abs(matrix).max(initial=0)
        )
        assert found.margin > 0 and found.direction is None
    else:
        assert float(found.direction.norm()) == pytest.approx(1)
        lengths = np.linalg.norm(matrix, axis=1)
        assert ((matrix @ found.direction.numpy()) <= 1e-11 * lengths).all()
        assert found.weights is None


@pytest.mark.parametrize("kind", HAND_MADE)
def test_hand_made(kind):
    matrix, expected = HAND_MADE[kind]
    found = is_omnidirectional(matrix)
    assert found.holds is expected
    assert bool(found) is expected
    check_certificate(matrix, found)


def free_direction(matrix):
    """A direction x != 0 with A x <= 0 among all that could be the only one, or None.

    The cone of such x is zero, or holds a line (a null vector), or an edge: a direction that n - 1
    independent rows are orthogonal to. Exact for integers but for the rounding of the null vector.
    """
    size = matrix.shape[1]
    if np.linalg.matrix_rank(matrix) < size:
        return np.linalg.svd(matrix)[2][-1] if len(matrix) else np.eye(size)[0]
    for rows in combinations(matrix, size - 1):
        if size > 1 and np.linalg.matrix_rank(rows) < size - 1:
            continue
        edge = np.linalg.svd(np.array(rows).reshape(-1, size))[2][-1]
        for x in (edge, -edge):
            if (matrix @ x <= 1e-9).all():
                return x
    return None


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_random_matrices_against_enumeration(size, integer):
    generator = np.random.default_rng(size + 10 * integer)
    seen = set()
    for _ in range(80):
        shape = (generator.integers(1, 3 * size + 2), size)
        matrix = generator.standard_normal(shape)
        if integer:  # many dependent rows, and rows on boundaries
            matrix = generator.integers(-1, 2, shape).astype(float)
        found = is_omnidirectional(matrix)
        assert found.holds is (free_direction(matrix) is None)
        check_certificate(matrix, found)
        seen.add(found.holds)
    assert seen == {True, False}


def test_every_sampled_direction_has_a_row():
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((30, 6))
    assert is_omnidirectional(matrix)
    x = generator.standard_normal((100_000, 6))
    assert (x @ matrix.T).max(1).min() > 0
    # A control: without the rows on one side it is not.
    half = matrix[matrix[:, 0] > 0]
    assert is_omnidirectional(half).holds is False


def test_rotation_and_scale_change_nothing():
    generator = np.random.default_rng(1)
    for _ in range(20):
        matrix = generator.standard_normal((9, 4))
        turn, _ = np.linalg.qr(generator.standard_normal((4, 4)))
        scaled = generator.uniform(0.01, 100, (9, 1)) * matrix @ turn
        assert is_omnidirectional(matrix).holds is is_omnidirectional(scaled).holds


def test_nearly_on_the_boundary_is_uncertain_and_not_guessed():
    # Half of the row's distance from the boundary is below what the solver can tell.
    matrix = np.array([[1.0, 0], [-1, 1e-10], [0, 1], [1e-10, -1]])
    assert is_omnidirectional(matrix[:3]).holds is False
    pinched = np.array([[1.0, 0], [-1, -1e-10], [0, 1]])
    assert is_omnidirectional(pinched).holds is None
    nearly_dependent = np.array([[1.0, 1], [-1, -1 - 1e-10], [1, 1 + 1e-10]])
    assert is_omnidirectional(nearly_dependent).holds is None


def test_a_thin_feasible_set_is_not_taken_for_an_empty_one():
    """Presolve calls the program of these rows infeasible, though zero weights solve it."""
    rows = np.array([
        [-0.4889690638420449, 1.760667296993123],
        [0.19921798301385701, -0.3820022921434805],
        [0.7305328736656789, -2.630484080721669],
    ])  # fmt: skip
    found = is_omnidirectional(rows)
    assert found.holds is False
    check_certificate(rows, found)


def test_takes_sparse_matrices_and_tensors():
    assert is_omnidirectional(sparse.csr_array(SIMPLEX))
    assert is_omnidirectional(torch.from_numpy(SIMPLEX).requires_grad_())


@pytest.mark.parametrize(
    "matrix, message",
    [(np.zeros(3), "allowed is a matrix"), (np.array([[1.0, np.nan]]), "not finite")],
)
def test_refuses(matrix, message):
    with pytest.raises(ValueError, match=message):
        is_omnidirectional(matrix)
