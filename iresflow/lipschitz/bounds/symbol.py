r"""Norms of convolutions by their Fourier transform, for any size of image.

A circular convolution has one small matrix for each frequency, its *symbol*
:math:`\hat W(\omega) = \sum_t W_t e^{i \omega t}`, and its norm is the largest of theirs (Sedghi
et al., 2019, arXiv:1805.10408). Other paddings give a compression of a circular convolution on a
larger grid (`iresflow.lipschitz.layers.padding`), so its norm is an upper bound of theirs. The
grid may be *twisted*: what wraps round is multiplied by :math:`e^{i\theta}`, which moves the
frequencies to :math:`(2 \pi j + \theta) / N`. Every grid and twist gives a bound, so the smallest
counts: it is nearly exact where the symbol's peak lies between two frequencies.

Only the Gram matrices :math:`\hat W^* \hat W = \sum_\delta G_\delta e^{i \omega \delta}`, with
:math:`G_\delta = \sum_{t' - t = \delta} W_t^\top W_{t'}`, are formed, on the side with fewer
channels: the other side's channels cost no more than one product.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from iresflow.lipschitz.bounds.base import EPS, scaled
from iresflow.lipschitz.layers.padding import Grid

__all__ = ["symbol_norm"]

_SEARCH = 4
"""Power iterations at all frequencies together, to find out which of them matter."""

_ENTRIES = 2**24
"""Largest number of entries of Gram matrices that are held at once."""


def symbol_norm(kernel: Tensor, grids: tuple[Grid, ...]) -> tuple[Tensor, float]:
    """Upper bound of a circular convolution's norm, the smallest over some grids.

    Arguments:
        kernel: ``(D, C, k, l)``.
        grids: Rows and columns of each grid.

    Returns:
        The bound, a float64 scalar with the gradient of the largest singular value at the
        frequency where it is largest; and a value below it, as a float: the smallest of the grids'
        norms less the allowance for rounding.

    The allowance is relative to the squared norm of all taps together, k l times their squared
    Frobenius norm F, which bounds each Gram matrix (Cauchy-Schwarz), also with all entries'
    absolute values. Sums run over max(C, D) channels and (k l)^2 pairs of taps; phases are off by
    4 (k + l) eps at most; eigenvalues by a modest multiple of min(C, D) eps; and a Cholesky
    factorisation that succeeds proves positive definite a matrix that is off by min(C, D) eps
    times the trace at most (Higham, Accuracy and Stability, theorem 10.3), so by min(C, D)^2 eps
    times the norm.

    Cost: O((k l)^2 C D min(C, D)), and O(min(C, D)^3) for each frequency.
    """
    moving, power = scaled(kernel)
    frozen = moving.detach()
    if power in (0.0, math.inf):
        return frozen.new_tensor(power), power
    if frozen.shape[1] > frozen.shape[0]:
        # The adjoint's norm is the same, and its symbol that of the transposed taps.
        moving, frozen = moving.transpose(0, 1), frozen.transpose(0, 1)
    many, few, *sides = frozen.shape
    table = _table(grids, (sides[0], sides[1]), frozen.device)
    peak = _lowest_peak(_correlations(frozen), table)
    taps = math.prod(sides)
    steps = many + taps**2 + 4 * sum(sides) + few * (few + 4) + 8
    slack = 4 * steps * EPS * taps * float(frozen.square().sum())
    square = max(peak.square, 0.0)
    upper = math.sqrt(square + slack) * (1 + 4 * EPS)
    lower = math.sqrt(max(square - slack, 0.0)) * power
    if not (torch.is_grad_enabled() and kernel.requires_grad):
        return frozen.new_tensor(upper * power), lower
    # The norm of the symbol times the singular vector, as a product of real matrices.
    vector = torch.linalg.eigh(peak.matrix)[1][:, -1]
    pattern = torch.view_as_real(vector[:, None] * peak.phases).flatten(0, 1)
    norm = torch.linalg.vector_norm(moving.flatten(1) @ pattern)
    return (norm - norm.detach() + upper) * power, lower


@final
@dataclass(frozen=True)
class _Table:
    """The frequencies of some grids, one of each pair of opposite ones, with their phases.

    Attributes:
        frequencies: ``(F, 2)``.
        waves: Cosines and sines of the shifts' phases, each ``(F, (2 k - 1) (2 l - 1))``.
        grid: ``(F,)``, the index of each frequency's grid.
        counts: Frequencies of each grid.
        sides: k and l, of the kernel.
    """

    frequencies: Tensor
    waves: tuple[Tensor, Tensor]
    grid: Tensor
    counts: tuple[int, ...]
    sides: tuple[int, int]


@final
@dataclass(frozen=True)
class _Peak:
    """Where a symbol is largest: the squared norm, the Gram matrix, and the taps' phases."""

    square: float
    matrix: Tensor
    phases: Tensor


@lru_cache(maxsize=64)
def _table(grids: tuple[Grid, ...], sides: tuple[int, int], device: torch.device) -> _Table:
    pairs = [
        torch.cartesian_prod(rows.frequencies(), columns.half()).view(-1, 2)
        for rows, columns in grids
    ]
    frequencies = torch.cat(pairs).to(device)
    shifts = [torch.arange(1 - k, k, dtype=torch.float64, device=device) for k in sides]
    angles = frequencies @ torch.cartesian_prod(*shifts).view(-1, 2).mT
    counts = tuple(len(pair) for pair in pairs)
    grid = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
    return _Table(frequencies, (angles.cos(), angles.sin()), grid, counts, sides)


def _correlations(kernel: Tensor) -> Tensor:
    """The matrices G of all shifts, ``((2 k - 1) (2 l - 1), C * C)``, of taps ``(D, C, k, l)``."""
    many, few, height, width = kernel.shape
    taps = height * width
    rows = kernel.permute(2, 3, 1, 0).reshape(taps * few, many)
    products = (rows @ rows.mT).view(taps, few, taps, few).transpose(1, 2)
    sums = rows.new_zeros((2 * height - 1) * (2 * width - 1), few * few)
    return sums.index_add_(0, _shifts(height, width, kernel.device), products.reshape(taps**2, -1))


@lru_cache(maxsize=16)
def _shifts(height: int, width: int, device: torch.device) -> Tensor:
    """For each pair (t, t') of taps, row by row, the index of the shift t' - t."""
    taps = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2)
    rows, columns = (
        a[None, :] - a[:, None] + side - 1
        for a, side in zip(taps.unbind(1), (height, width), strict=True)
    )
    return (rows * (2 * width - 1) + columns).flatten().to(device)


def _lowest_peak(correlations: Tensor, table: _Table) -> _Peak:
    """The largest eigenvalue on each grid, and of these the smallest.

    The Rayleigh quotients of a power iteration tell most frequencies apart from the largest: where
    the largest quotient of the grid exceeds a Gram matrix, by a Cholesky factorisation, the
    quotient stands for the eigenvalue; only the others need theirs.
    """
    few = math.isqrt(correlations.shape[1])
    count = len(table.frequencies)
    values = correlations.new_zeros(count)
    floors = correlations.new_zeros(len(table.counts))
    for part in torch.arange(count).split(max(1, _ENTRIES // few**2)):
        chunk = slice(int(part[0]), int(part[-1]) + 1)
        matrices = _gram_matrices(correlations, table, chunk)
        if few == 1:
            values[chunk] = matrices.real.flatten()
            continue
        quotients = _rayleigh(matrices)
        floors.scatter_reduce_(0, table.grid[chunk], quotients, "amax")
        rest = matrices.neg()
        rest.diagonal(dim1=1, dim2=2).add_(floors[table.grid[chunk]][:, None])
        left = torch.linalg.cholesky_ex(rest)[1].nonzero().flatten()
        quotients[left] = torch.linalg.eigvalsh(matrices[left])[:, -1]
        values[chunk] = quotients
    tops = [(part.max(0)) for part in values.split(table.counts)]
    best = min(range(len(tops)), key=lambda i: float(tops[i].values))
    index = sum(table.counts[:best]) + int(tops[best].indices)
    matrix = _gram_matrices(correlations, table, slice(index, index + 1))[0]
    rows, columns = (
        frequency * torch.arange(k, dtype=torch.float64, device=values.device)
        for frequency, k in zip(table.frequencies[index], table.sides, strict=True)
    )
    angles = rows[:, None] + columns[None, :]
    phases = torch.complex(angles.cos(), angles.sin()).flatten()
    return _Peak(float(tops[best].values), matrix, phases)


def _gram_matrices(correlations: Tensor, table: _Table, chunk: slice) -> Tensor:
    few = math.isqrt(correlations.shape[1])
    cosines, sines = (waves[chunk] @ correlations for waves in table.waves)
    return torch.complex(cosines, sines).view(-1, few, few)


def _rayleigh(matrices: Tensor) -> Tensor:
    """Rayleigh quotients ``(F,)`` of Hermitian matrices, near their largest eigenvalues."""
    vectors = matrices.sum(-1, keepdim=True)
    for _ in range(_SEARCH):
        vectors = matrices @ vectors  # scaled kernels are below 1: no power comes near overflow
    images = torch.view_as_real(matrices @ vectors)
    vectors = torch.view_as_real(vectors)
    squares = vectors.square().sum((1, 2, 3))
    return (vectors * images).sum((1, 2, 3)) / squares.clamp_min(1e-300)
