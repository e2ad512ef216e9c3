"""The input of one ReLU layer from its output, by least squares on the active rows."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.relu.frames.active_rows import (
    MEMORY,
    TOLERANCE,
    check_frame,
    check_tolerance,
    normal_matrices,
    pattern_parts,
)

__all__ = ["Reconstruction", "reconstruct"]

REFINEMENTS = 3


@final
@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Inputs recovered from the outputs of one layer.

    Attributes:
        x: ``(B, n)`` float64: the least-squares solution, and of many the shortest.
        rank: Dimensions in which the active rows determine it, ``(B,)`` int64.
        residual: Largest violation of an equation of the active rows, ``(B,)``: well above
            rounding, the output is none of this layer.
        determined: Whether the rank is full, ``(B,)`` bool: then x is the layer's input.
    """

    x: Tensor
    rank: Tensor
    residual: Tensor
    determined: Tensor


def reconstruct(
    weight: Tensor, alpha: Tensor, z: Tensor, *, tolerance: float = TOLERANCE
) -> Reconstruction:
    """Solves W+ x = z+ + alpha+ by least squares (eq. 9), for many outputs at once.

    The active rows are those with z > 0. Outputs with the same active rows share one eigenvalue
    decomposition of their normal matrix; the decompositions of all patterns are made in batches.
    Steps of iterative refinement make up for the squared condition number of normal equations.
    Directions whose singular value is below ``tolerance`` times the largest count as lost.

    Arguments:
        weight: W, ``(m, n)``.
        alpha: ``(m,)``: minus the bias of a ``torch.nn.Linear``.
        z: Outputs of max(0, W x - alpha), ``(B, m)``.
        tolerance: Smallest ratio of singular values that is inverted, above 1e-7.

    Raises:
        ValueError: shapes that don't fit, values that are not finite, a negative output, or a
            tolerance out of range.
    """
    weight, alpha, z = weight.double(), alpha.double(), z.double()
    check_frame(weight, alpha)
    check_tolerance(tolerance)
    if z.dim() != 2 or z.shape[1] != len(weight) or len(z) == 0:
        raise ValueError(f"outputs have shape {tuple(z.shape)}; allowed is (B, {len(weight)})")
    if not bool(torch.isfinite(z).all()) or bool((z < 0).any()):
        raise ValueError("outputs hold negative or not finite values: they are none of ReLU")
    active = z > 0
    if bool((active & torch.isinf(alpha)).any()):
        raise ValueError("an output is positive where alpha is infinite")
    target = torch.where(active, z + alpha, 0.0)
    patterns, which = torch.unique(active, dim=0, return_inverse=True)
    x = z.new_zeros(len(z), weight.shape[1])
    rank = torch.zeros(len(z), dtype=torch.int64)
    order = which.argsort(stable=True)
    starts = torch.searchsorted(which[order], torch.arange(len(patterns) + 1))
    for part in pattern_parts(patterns, weight):
        values, vectors = torch.linalg.eigh(normal_matrices(weight, patterns[part]))
        inverse = _truncated_inverse(values, tolerance)
        last = min(part.stop, len(patterns))
        rows = order[starts[part.start] : starts[last]]
        # Each output needs a copy of its pattern's eigenvectors, so many can't go together.
        for some in rows.split(max(1, MEMORY // vectors[0].numel())):
            local = which[some] - part.start
            rank[some] = (inverse[local] > 0).sum(1)
            x[some] = _solve(weight, active[some], target[some], inverse[local], vectors[local])
    residual = torch.where(active, x @ weight.mT - target, 0.0).abs().amax(1)
    return Reconstruction(x, rank, residual, rank == weight.shape[1])


def _truncated_inverse(values: Tensor, tolerance: float) -> Tensor:
    """1 / eigenvalue ``(P, n)`` where it counts, else 0."""
    # A pattern without active rows has no largest eigenvalue to compare with.
    least = (tolerance**2 * values[:, -1:]).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.where(values > least, 1 / values.clamp(min=1e-300), 0.0)


def _solve(
    weight: Tensor, active: Tensor, target: Tensor, inverse: Tensor, vectors: Tensor
) -> Tensor:
    """Least squares ``(R, n)`` of R outputs, with the decompositions of their patterns."""
    x = weight.new_zeros(len(target), weight.shape[1])
    for _ in range(1 + REFINEMENTS):
        error = torch.where(active, target - x @ weight.mT, 0.0)
        step = torch.einsum("rnk,rn->rk", vectors, error @ weight) * inverse
        x = x + torch.einsum("rnk,rk->rn", vectors, step)
    return x
