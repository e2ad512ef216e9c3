"""Lanczos' process against dense eigenvalues."""

import pytest
import torch

from iresflow.lanczos import LanczosProcess


def steps_of(operator, start, steps):
    """What the basis and the matrix are after each step."""
    process, found = LanczosProcess(start, steps), []
    for vector in process:
        assert vector.shape == start.shape
        process.take(operator(vector))
        found.append((process.basis.clone(), process.matrix.clone()))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_basis_is_orthonormal_and_the_operator_tridiagonal_in_it(dtype):
    factor = torch.randn(30, 30, dtype=dtype)
    matrix = factor @ factor.mT
    eps = torch.finfo(dtype).eps * float(torch.linalg.matrix_norm(matrix, ord=2))
    start = torch.randn(1, 5, 6, dtype=dtype)
    found = steps_of(lambda x: (matrix @ x.flatten()).view(x.shape), start, 40)
    assert [len(basis) for basis, _ in found] == list(range(1, 31))  # no more than dimensions
    basis, tridiagonal = found[-1]
    assert tridiagonal.dtype == torch.float64
    torch.testing.assert_close(basis @ basis.mT, torch.eye(30, dtype=dtype), rtol=0, atol=eps)
    oracle = (basis @ matrix @ basis.mT).double()
    torch.testing.assert_close(tridiagonal, oracle, rtol=0, atol=20 * eps)
    assert not tridiagonal.triu(2).any() and torch.equal(tridiagonal, tridiagonal.mT)
    torch.testing.assert_close(found[3][1], tridiagonal[:4, :4], rtol=0, atol=0)
    largest = torch.linalg.eigvalsh(matrix.double())[-1]
    assert float(torch.linalg.eigvalsh(tridiagonal)[-1]) == pytest.approx(float(largest))


def test_it_ends_with_zeros_where_the_space_of_powers_ends():
    values = torch.tensor([3.0, 3.0, 2.0, 2.0, 2.0, 1.0])
    *_, (basis, tridiagonal) = steps_of(lambda x: values * x, torch.randn(6), 6)
    assert torch.equal(basis.norm(dim=1) > 0.5, torch.arange(6) < 3) and not basis[3:].any()
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(torch.linalg.eigvalsh(tridiagonal), expected)


def test_nothing_comes_of_zeros_and_nan_of_nan():
    for start, value in ((0.0, 0.0), (float("nan"), float("nan"))):
        *_, (_, matrix) = steps_of(lambda x: 2 * x, torch.full((4,), start), 3)
        torch.testing.assert_close(
            matrix.diagonal(), torch.full((3,), value), equal_nan=True, rtol=0, atol=0
        )
