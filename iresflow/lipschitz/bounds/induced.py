r"""Induced norms :math:`\|A\|_{p \to q} = \max \|A x\|_q / \|x\|_p` for p and q of 1, 2, infinity.

A residual block is invertible if its branch contracts in *any* p-norm (thesis, eq. 4.1 and remark
4.7), and a branch may change the norm between its layers, as in the mixed norms of Residual Flows
(Chen et al., 2019, arXiv:1906.02735). Exact are the norms from p = 1, the largest q-norm of a
column, and to q = infinity, the largest norm of a row in the norm dual to p. The others but 2 to 2
are NP-hard (Steinberg, Computation of matrix norms, 2005), and bounded by the matrix of absolute
values and the vector of ones.

All are sums over entries of A. A convolution repeats few entries often: each pair of an output
row and an input row is linked by one set of taps, so counting the pairs by their sets gives
every sum with the image's border, stride and padding.
"""

import math

import torch
from torch import Tensor

from iresflow.lipschitz.bounds.base import EPS, Bound, scaled

__all__ = ["NORMS", "entry_bounds", "induced_bounds"]

NORMS = (1.0, 2.0, math.inf)
"""The p-norms that have bounds."""


def entry_bounds(
    kernel: Tensor, rows: Tensor, columns: Tensor, error: float = 0.0, quantum: float = 0.0
) -> dict[tuple[float, float], float]:
    """Upper bounds of the induced norms of a convolution, by (p, q), all but that from 2 to 2.

    Arguments:
        kernel: ``(D, C, k, k)``.
        rows, columns: Its taps along both axes, ``(k, H', H)`` and ``(k, W', W)`` of 0 and 1.
        error, quantum: Each weight may be off by its magnitude times `error`, plus `quantum`. It
            counts for each tap by itself: taps that add up to an entry may cancel each other.

    Sums of positive numbers are off by a relative error of their count times eps at most, and an
    entry that several taps add up to by k^2 eps times the sum of their absolute values.
    """
    weight, power = scaled(kernel.detach().cpu())
    pairs = [(p, q) for p in NORMS for q in NORMS if (p, q) != (2.0, 2.0)]
    if power in (0.0, math.inf):
        return dict.fromkeys(pairs, power)
    row_sets, row_reads, row_writes = _tap_sets(rows)
    column_sets, column_reads, column_writes = _tap_sets(columns)
    merge = "ua,vb,dcab->uvdc"
    sums = torch.einsum(merge, row_sets, column_sets, weight).abs()
    magnitudes = torch.einsum(merge, row_sets, column_sets, weight.abs())
    taps = torch.einsum("ua,vb->uv", row_sets, column_sets)[..., None, None]
    entries = sums + (kernel[0, 0].numel() * EPS + error) * magnitudes + taps * (quantum / power)

    def over_rows(values: Tensor) -> Tensor:
        return torch.einsum("ou,pv,uvd->opd", row_reads, column_reads, values.sum(3))

    def over_columns(values: Tensor) -> Tensor:
        return torch.einsum("yu,xv,uvc->yxc", row_writes, column_writes, values.sum(2))

    row_sums, column_sums = over_rows(entries), over_columns(entries)
    values = {
        (1.0, 1.0): column_sums.max(),
        (1.0, 2.0): over_columns(entries.square()).max().sqrt(),
        (1.0, math.inf): entries.max(),
        (2.0, 1.0): column_sums.square().sum().sqrt(),
        (2.0, math.inf): over_rows(entries.square()).max().sqrt(),
        (math.inf, 1.0): row_sums.sum(),
        (math.inf, 2.0): row_sums.square().sum().sqrt(),
        (math.inf, math.inf): row_sums.max(),
    }
    terms = entries.numel() + row_sums.numel() + column_sums.numel() + 16
    return {pair: float(value) * (1 + 4 * terms * EPS) * power for pair, value in values.items()}


def induced_bounds(
    taps: tuple[Tensor, Tensor, Tensor],
    spectral: Bound,
    scale: float,
    errors: tuple[float, float],
) -> dict[tuple[float, float], Bound]:
    """Bounds of a convolution whose kernel is multiplied by a number, by (p, q), from 2 to 2 too.

    Arguments:
        taps: Kernel, rows and columns of `entry_bounds`, before the multiplication.
        spectral: The bound from 2 to 2, after it.
        scale: The number.
        errors: What the multiplication adds to an entry, as `entry_bounds` takes it.
    """
    kernel, rows, columns = taps
    inputs = kernel.shape[1] * rows.shape[2] * columns.shape[2]
    outputs = kernel.shape[0] * rows.shape[1] * columns.shape[1]
    # |x|_2 <= root of n |x|_inf and |y|_1 <= root of m |y|_2 bound what has no formula.
    wide, tall = math.sqrt(inputs) * (1 + 1e-15), math.sqrt(outputs) * (1 + 1e-15)
    factors = {(math.inf, 2.0): wide, (2.0, 1.0): tall, (math.inf, 1.0): wide * tall}
    growth = scale * (1 + 1e-15)
    bounds = {(2.0, 2.0): spectral}
    for pair, value in entry_bounds(kernel, rows, columns, *errors).items():
        if pair in factors:
            upper = min(value * growth, spectral.upper * factors[pair] * (1 + 1e-15))
            bounds[pair] = Bound(upper, spectral.estimate, "entries")
        else:
            bounds[pair] = Bound(value * growth, value * scale, "entries")
    return bounds


def _tap_sets(taps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different sets of taps that link an output to an input along one axis.

    Returns:
        The sets ``(S, k)`` of 0 and 1; for each output, by how many inputs it reads through each
        set, ``(outputs, S)``; and for each input, how many outputs read it, ``(inputs, S)``.
    """
    linked = taps.permute(1, 2, 0)
    sets, index = torch.unique(linked.flatten(0, 1), dim=0, return_inverse=True)
    members = torch.nn.functional.one_hot(index, len(sets)).to(taps.dtype)
    members = members.view(*linked.shape[:2], -1)[:, :, sets.any(1)]
    return sets[sets.any(1)], members.sum(1), members.sum(0)
