"""Inversion from a linear measurement of a network's output: inpainting, and more."""

from dataclasses import replace
from typing import final

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from iresflow.relu.networks.affine import AffineMap, ComposedMap, Matrix
from iresflow.relu.networks.network import Layer, Network

__all__ = ["MatrixMap", "observe_part", "sense"]


@final
class MatrixMap(AffineMap):
    """x -> A x + b of a sparse matrix.

    Arguments:
        matrix: A, ``(m, n)``.
        bias: b, ``(m,)``.
    """

    def __init__(self, matrix: sparse.csr_array, bias: Tensor) -> None:
        self._matrix, self.bias = matrix, bias
        self.out_shape, self.in_shape = matrix.shape[:1], matrix.shape[1:]
        # For products that can be differentiated.
        entries = matrix.tocoo()
        places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
        self._rows = torch.sparse_coo_tensor(
            places, torch.from_numpy(entries.data), matrix.shape, check_invariants=False
        )

    def product(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self._rows, x.mT).mT

    def adjoint(self, u: Tensor) -> Tensor:
        return torch.sparse.mm(self._rows.mT, u.mT).mT

    def matrix(self) -> Matrix:
        return self._matrix


def observe_part(network: Network, known: Tensor | np.ndarray) -> Network:
    """The network that gives only some entries of the output: its last layer has fewer rows.

    Arguments:
        network: Of n outputs.
        known: Which ones are observed, ``(n,)`` bool.

    Raises:
        ValueError: another shape or type, or none.
    """
    known = np.asarray(known)
    if known.shape != (network.out_size,) or known.dtype != bool or not known.any():
        raise ValueError(
            f"known has shape {known.shape} of {known.dtype}, {int(known.sum())} of it set; "
            f"allowed is ({network.out_size},) of bool with at least one"
        )
    return sense(
        network, sparse.csr_array(sparse.eye_array(network.out_size, format="csr")[known])
    )


def sense(network: Network, operator: Matrix) -> Network:
    """The network that gives y = B G(x): a piecewise linear chain again.

    Where B passes through the last activation it joins the last layer: no activation, or rows of
    B with at most one entry, and that not negative (a mask, a subsampling, weights), since
    s(t v) = t s(v) for t >= 0. Else B becomes a layer of its own; with fewer rows than columns
    that layer's inversion is undetermined and says so, as its input is known to B alone.

    Arguments:
        network: Of n outputs.
        operator: B, ``(r, n)``, dense or sparse.

    Raises:
        ValueError: a shape that doesn't fit, or values that are not finite.
    """
    rows = sparse.csr_array(operator)
    if rows.shape[1] != network.out_size or rows.shape[0] == 0:
        raise ValueError(
            f"the operator has shape {rows.shape}; allowed is (r, {network.out_size}), r >= 1"
        )
    if not np.isfinite(rows.data).all():
        raise ValueError("the operator holds values that are not finite")
    rows.eliminate_zeros()
    *before, last = network.layers
    single = (np.diff(rows.indptr) <= 1).all() and (rows.data >= 0).all()
    part = MatrixMap(rows, torch.zeros(rows.shape[0], dtype=torch.float64))
    if last.slope != 1 and not single:
        return Network((*network.layers, Layer("operator", part)))
    return Network((*before, replace(last, affine=ComposedMap(last.affine, part))))
