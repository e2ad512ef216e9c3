"""One verdict on a rank, whichever tool is asked, and singular values against plain SVDs."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from iresflow.relu import (
    Kind,
    classify_preimage,
    dense_layer,
    frame_bounds,
    invert_layer,
    is_omnidirectional,
    measure_stages,
    reconstruct,
    singular_values,
)
from iresflow.relu.inversion.error_bounds import norm_constant
from iresflow.relu.ranks import Spectrum, decompose, roots_of_gram, shortest_solution


def with_ratio(ratio, rows=8, columns=5):
    """A matrix whose smallest singular value is that share of the largest."""
    left, _ = torch.linalg.qr(torch.randn(rows, columns))
    right, _ = torch.linalg.qr(torch.randn(columns, columns))
    return left * torch.tensor([1.0, 0.9, 0.8, 0.7, ratio]) @ right.mT


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(0.0, "no"), (1e-14, "no"), (1e-13, "no"), (1e-10, "uncertain"), (1e-7, "yes"), (0.1, "yes")],
)
def test_all_tools_agree_on_a_rank_in_all_units(ratio, verdict, unit):
    weight = unit * with_ratio(ratio)
    x = torch.randn(5)
    products = weight @ x
    # All rows are active at x, and as far from a tie as products are large.
    layer = dense_layer(weight, 2 * products.abs().max() - products)
    y = layer(x[None])
    kinds = {"yes": Kind.SINGLETON, "no": Kind.UNBOUNDED, "uncertain": Kind.UNCERTAIN}
    assert classify_preimage(layer, y[0]).kind is kinds[verdict]
    assert classify_preimage(layer, y[0], member=x).kind is kinds[verdict]
    found = frame_bounds(layer, x[None])
    assert (bool(found.rectifying), bool(found.uncertain)) == (
        verdict == "yes",
        verdict == "uncertain",
    )
    assert reconstruct(layer, y).verdicts == (verdict,)
    assert invert_layer(layer, y[0]).determined == verdict
    assert (norm_constant(weight, 1) > 0) == (verdict == "yes")
    module = nn.Linear(5, 8)
    with torch.no_grad():
        module.weight.copy_(weight)
    (stage,) = measure_stages(module, x[None])
    assert stage.spectra[0].spans(5) == singular_values(weight).spans(5) == verdict
    parts = decompose(weight.numpy())
    assert (parts.certain, parts.rank == 5) == (verdict != "uncertain", verdict == "yes")
    # With its negative it is omnidirectional if and only if it spans the space.
    holds = {"yes": True, "no": False, "uncertain": None}
    assert is_omnidirectional(torch.cat([weight, -weight])).holds is holds[verdict]


def test_verdicts_of_a_spectrum():
    spectrum = Spectrum(torch.tensor([2.0, 1.0, 1e-9, 1e-14]))
    assert (spectrum.rank, spectrum.count) == (2, 3)
    assert [spectrum.spans(n) for n in (2, 3, 4)] == ["yes", "uncertain", "no"]
    assert spectrum.condition == pytest.approx(2e9)


@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (9, 9), (0, 4), (4, 0)])
@pytest.mark.parametrize("rank", [3, 99])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_shortest_solution(shape, rank, form):
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal(shape)
    if rank < min(shape):
        matrix = generator.standard_normal((shape[0], rank)) @ matrix[:rank]
    side = generator.standard_normal(shape[0])
    x, spectrum = shortest_solution(form(matrix), side)
    expected = np.linalg.lstsq(matrix, side)[0] if 0 not in shape else np.zeros(shape[1])
    np.testing.assert_allclose(x, expected, atol=1e-12)
    assert spectrum.rank == min(rank, *shape)


@pytest.mark.parametrize("smallest", [1e-3, 1e-5, 1e-7])
def test_solutions_are_as_exact_as_the_condition_allows(smallest):
    matrix = with_ratio(smallest, 40).numpy()
    truth = np.random.default_rng(1).standard_normal(5)
    for x in (
        shortest_solution(matrix, matrix @ truth)[0],
        decompose(matrix).solve(matrix @ truth),
    ):
        assert np.abs(x - truth).max() < 50 * np.finfo(float).eps / smallest


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (20, 4), (0, 3), (3, 0), (4, 4)])
def test_decomposition(shape):
    generator = np.random.default_rng(2)
    matrix = generator.standard_normal(shape)
    if min(shape) > 2:
        matrix[:, 0] = matrix[:, 1] - 2 * matrix[:, 2]
    parts = decompose(matrix)
    assert parts.rank == (np.linalg.matrix_rank(matrix) if matrix.size else 0)
    assert parts.certain
    basis = parts.null_basis
    assert basis.shape == (shape[1], shape[1] - parts.rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    np.testing.assert_allclose(matrix @ basis, 0, atol=1e-12)
    side = matrix @ generator.standard_normal(shape[1])
    np.testing.assert_allclose(matrix @ parts.solve(side), side, atol=1e-12)


def test_rank_between_the_tolerances_is_uncertain():
    left, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((5, 5)))
    for small, certain, rank in ((1e-14, True, 4), (1e-10, False, 4), (1e-6, True, 5)):
        parts = decompose(left * np.array([1, 1, 1, 1, small]) @ left.T)
        assert (parts.certain, parts.rank) == (certain, rank)


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


def test_small_singular_values_keep_digits():
    """A Gram matrix alone would lose those below 1e-8 of the largest one."""
    left, _ = torch.linalg.qr(torch.randn(40, 6))
    right, _ = torch.linalg.qr(torch.randn(6, 6))
    for smallest in (1e-3, 1e-5, 1e-9, 1e-11):
        values = torch.tensor([3.0, 2.0, 1.0, 0.5, 1e-2, smallest])
        found = singular_values(left * values @ right.mT).values
        np.testing.assert_allclose(found, values, rtol=1e-14 / smallest + 1e-6)
    assert roots_of_gram(np.diag([1.0, 1e-9])) is None
    np.testing.assert_allclose(roots_of_gram(np.diag([1e-6, 4.0])), [2, 1e-3])
