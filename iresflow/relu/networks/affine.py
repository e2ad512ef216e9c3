"""Affine maps of flat vectors: products without a matrix, and the matrix where one is needed.

Samples are rows: a batch of flattened inputs is ``(B, n)``, of flattened outputs ``(B, m)``. All
is float64 on the CPU, since ranks and linear programs are decided in it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias, final

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.func import jvp, vjp

__all__ = [
    "AffineMap",
    "ComposedMap",
    "DenseMap",
    "FunctionMap",
    "IdentityMap",
    "Matrix",
    "as_array",
]

Matrix: TypeAlias = np.ndarray | sparse.csr_array
"""A real matrix ``(m, n)``, dense or sparse."""


def as_array(values: object, name: str, dimensions: int) -> np.ndarray:
    """Values as a float64 array of that many dimensions, dense.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    dense = values.toarray() if hasattr(values, "toarray") else values
    if hasattr(dense, "detach"):
        dense = dense.detach().cpu()
    array = np.asarray(dense, dtype=float)
    if array.ndim != dimensions:
        kind = {1: "vector", 2: "matrix"}[dimensions]
        raise ValueError(f"{name} has shape {array.shape}; allowed is a {kind}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array


class AffineMap(ABC):
    """A map x -> A x + b of flattened tensors.

    Attributes:
        in_shape: Shape of an input before flattening; n is the product.
        out_shape: Likewise of an output; m is the product.
        bias: b, shape ``(m,)``.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    bias: Tensor

    @property
    def in_size(self) -> int:
        """n."""
        return math.prod(self.in_shape)

    @property
    def out_size(self) -> int:
        """m."""
        return math.prod(self.out_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """A x + b: ``(B, n)`` to ``(B, m)``."""
        return self.product(x) + self.bias

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """A x: ``(B, n)`` to ``(B, m)``."""

    @abstractmethod
    def adjoint(self, u: Tensor) -> Tensor:
        """The transposed product: ``(B, m)`` to ``(B, n)``."""

    @abstractmethod
    def matrix(self) -> Matrix:
        """A, shape ``(m, n)``; sparse where most of its entries are zeros."""

    def dense(self) -> np.ndarray:
        """A, shape ``(m, n)``, as a dense array."""
        matrix = self.matrix()
        return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()


@final
class DenseMap(AffineMap):
    """The map of a matrix.

    Arguments:
        weight: A, shape ``(m, n)``.
        bias: b, shape ``(m,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.out_shape, self.in_shape = weight.shape[:1], weight.shape[1:]

    def product(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT

    def adjoint(self, u: Tensor) -> Tensor:
        return u @ self.weight

    def matrix(self) -> Matrix:
        return self.weight.numpy()


@final
class IdentityMap(AffineMap):
    """x -> x, for an activation that no linear layer precedes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.in_shape = self.out_shape = shape
        self.bias = torch.zeros(math.prod(shape), dtype=torch.float64)

    def product(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, u: Tensor) -> Tensor:
        return u

    def matrix(self) -> Matrix:
        return sparse.eye_array(self.in_size, format="csr")


PROBES = 64
"""Columns of a function's matrix that are computed in one go."""


@final
class FunctionMap(AffineMap):
    """The map of any affine function, by automatic differentiation.

    Arguments:
        function: Maps ``(B, *in_shape)`` to ``(B, *out_shape)``, each sample on its own; affine.
        in_shape: Shape of an input.
        blocks: Number of equal parts of a flat input that don't mix, such as the channels of a
            pooling, or all entries of a function that works on each entry. The matrix then costs
            n / blocks products instead of n.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], in_shape: tuple[int, ...], blocks: int = 1
    ) -> None:
        self.in_shape, self.blocks = in_shape, blocks
        self._function = function
        at_zero = function(torch.zeros(1, *in_shape, dtype=torch.float64))
        self.out_shape, self.bias = tuple(at_zero.shape[1:]), at_zero[0].flatten()

    def product(self, x: Tensor) -> Tensor:
        return jvp(self._flat, (torch.zeros_like(x),), (x,))[1]

    def adjoint(self, u: Tensor) -> Tensor:
        return vjp(self._flat, u.new_zeros(len(u), self.in_size))[1](u)[0]

    def matrix(self) -> Matrix:
        return self._sparse

    @cached_property
    def _sparse(self) -> sparse.csr_array:
        width, height = self.in_size // self.blocks, self.out_size // self.blocks
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for units in torch.eye(width, dtype=torch.float64).split(PROBES):
            # One unit vector in each block at a time: what they give can be told apart.
            found = self.product(units.repeat(1, self.blocks)).unflatten(1, (self.blocks, height))
            probe, block, row = (index.numpy() for index in found.nonzero(as_tuple=True))
            column = block * width + probe + len(parts) * PROBES
            values = found[probe, block, row].numpy()
            parts.append((values, block * height + row, column))
        values, rows, columns = (np.concatenate(group) for group in zip(*parts, strict=True))
        shape = (self.out_size, self.in_size)
        return sparse.coo_array((values, (rows, columns)), shape=shape).tocsr()

    def _flat(self, x: Tensor) -> Tensor:
        return self._function(x.unflatten(1, self.in_shape)).flatten(1)


@final
class ComposedMap(AffineMap):
    """One map after the other.

    Arguments:
        first: What is applied first.
        then: What is applied to its output, flat vectors of the same size.
    """

    def __init__(self, first: AffineMap, then: AffineMap) -> None:
        self.first, self.then = first, then
        self.in_shape, self.out_shape = first.in_shape, then.out_shape
        self.bias = then(first.bias[None])[0]

    def product(self, x: Tensor) -> Tensor:
        return self.then.product(self.first.product(x))

    def adjoint(self, u: Tensor) -> Tensor:
        return self.first.adjoint(self.then.adjoint(u))

    def matrix(self) -> Matrix:
        return self._product

    @cached_property
    def _product(self) -> Matrix:
        return self.then.matrix() @ self.first.matrix()
