r"""Convolutions whose filters have a fixed width in daltons, on any grid (thesis, section 7.5).

A filter is a function of a mass difference: a sum of hat functions at knots of equal distance h,
:math:`k(d) = \sum_k w_k \Lambda(d / h - k)`, where :math:`\Lambda(u) = \max(0, 1 - |u|)`. What it
gives at a mass M is :math:`\frac{1}{h} \int k(m - M) x(m) dm`, where the spectrum x is constant
in each bin. The integrals over bins are known in closed form, so the filter is exact on whatever
grid: only its matrix depends on the grid, not its weights.
"""

from typing import final

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from torch import Tensor, nn

from iresflow.spectra.checks import Floats, require_real
from iresflow.spectra.grids import bin_edges
from iresflow.spectra.parameters import require_count, require_positive

__all__ = ["PhysicalConvolution"]


@final
class PhysicalConvolution(nn.Module):
    """Filters of a fixed width in daltons, from one grid to masses of any kind; without bias.

    Beyond the grid, spectra are 0.

    Arguments:
        inputs: C, of maps that come in.
        maps: C', of maps that go out.
        grid: Masses of the bins of the input ``(L,)``, ascending, in daltons.
        masses: Where the filters are applied ``(L',)``, in daltons.
        spacing: h, the distance of the filters' knots, in daltons.
        knots: Odd; a filter reaches ``h (knots + 1) / 2`` to each side.

    Raises:
        ValueError: as `require_grid`; numbers out of range; no masses, or what are none.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(
        self,
        inputs: int,
        maps: int,
        grid: ArrayLike,
        masses: ArrayLike,
        spacing: float,
        knots: int = 3,
    ) -> None:
        super().__init__()
        require_positive(spacing=spacing)
        require_count(inputs=inputs, maps=maps, knots=knots)
        if knots % 2 == 0:
            raise ValueError(f"a filter has an odd number of knots, got {knots}")
        places = require_real(masses=masses)
        if places.ndim != 1 or not len(places) or not np.isfinite(places).all():
            raise ValueError(f"masses are finite numbers (L',), got {masses!r}")
        matrix = _matrix(bin_edges(grid), places, spacing, knots)
        self.shape = matrix.shape
        self.weight = nn.Parameter(torch.empty(maps, inputs, knots))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        # Not stored: they follow from the grid.
        for name, array in (
            ("rows", matrix.row.astype(np.int64)),
            ("columns", matrix.col.astype(np.int64)),
            ("values", matrix.data),
        ):
            tensor = torch.from_numpy(array)
            tensor = tensor.to(self.weight.dtype) if tensor.is_floating_point() else tensor
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, C, L)`` to ``(B, C', L')``."""
        batch, inputs, length = x.shape
        knots = self.weight.shape[2]
        matrix = torch.sparse_coo_tensor(
            torch.stack([self.rows, self.columns]),
            self.values,
            self.shape,
            is_coalesced=True,
            check_invariants=False,
        )
        seen = torch.sparse.mm(matrix, x.reshape(batch * inputs, length).mT)
        seen = seen.reshape(-1, knots, batch, inputs)
        return torch.einsum("lkbi,oik->bol", seen, self.weight)


def _matrix(edges: Floats, masses: Floats, spacing: float, knots: int) -> coo_array:
    """Means of the bins under each hat function: ``(masses * knots, bins)``, each row of sum 1.

    Rows of hat functions that leave the grid have a smaller sum.
    """
    middles = masses[:, None] + spacing * (np.arange(knots) - knots // 2)
    bins = len(edges) - 1
    rows, columns, values = [], [], []
    flat = middles.ravel()
    first = np.clip(np.searchsorted(edges, flat - spacing, side="right") - 1, 0, bins)
    end = np.clip(np.searchsorted(edges, flat + spacing, side="left"), 0, bins)
    for offset in range(int((end - first).max(initial=0))):
        inside = np.flatnonzero(first + offset < end)
        column = first[inside] + offset
        left, right = edges[column] - flat[inside], edges[column + 1] - flat[inside]
        rows.append(inside)
        columns.append(column)
        values.append(_hat_integral(right / spacing) - _hat_integral(left / spacing))
    matrix = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(len(flat), bins),
    )
    # Sorted by rows, as PyTorch wants them.
    return matrix.tocsr().tocoo()


def _hat_integral(u: Floats) -> Floats:
    """The integral of the hat function from -1 to u."""
    u = np.clip(u, -1, 1)
    return np.where(u < 0, (1 + u) ** 2 / 2, 1 - (1 - u) ** 2 / 2)
