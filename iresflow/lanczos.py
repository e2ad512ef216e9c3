"""Lanczos' process: a basis in which a symmetric operator is tridiagonal, vector by vector."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from iresflow.tensors import widest

__all__ = ["LanczosProcess"]

ROUNDED = 256
"""In units of eps: how much of a vector is rounding, once a part of it has been taken away."""


@final
class LanczosProcess:
    """An orthonormal basis of what powers of a symmetric operator make of a start.

    It is kept orthogonal in full (Golub and Van Loan, Matrix Computations, 10.3). It ends with
    vectors of zeros where rounding alone has left a direction. Nothing is read from the device.
    Who iterates over the vectors applies the operator to each, and lets the process `take` that.

    Arguments:
        start: A tensor of n entries; no graph is kept of what is made of it.
        steps: Products at most; there are no more than n.
    """

    def __init__(self, start: Tensor, steps: int) -> None:
        self._shape, self._rest, self._taken = start.shape, start.flatten(), 0
        self._steps = min(steps, start.numel())
        self._basis = start.new_zeros(self._steps, start.numel())
        size = (self._steps, self._steps)
        self._matrix = start.new_zeros(size, dtype=widest(start.device))

    @property
    def basis(self) -> Tensor:
        """The vectors whose images were taken, ``(k, n)``."""
        return self._basis[: self._taken]

    @property
    def matrix(self) -> Tensor:
        """The operator in the basis, ``(k, k)``, in the widest type of float."""
        return self._matrix[: self._taken, : self._taken]

    def __iter__(self) -> Iterator[Tensor]:
        info = torch.finfo(self._rest.dtype)
        for step in range(self._steps):
            rest, basis = self._rest, self.basis
            whole = torch.linalg.vector_norm(rest)
            for _ in range(2):  # once leaves what the next step's errors grow from
                rest = rest - (basis @ rest) @ basis
            size = torch.linalg.vector_norm(rest)
            size = torch.where(size > ROUNDED * info.eps * whole, size, 0)
            if step:
                self._matrix[step - 1, step] = self._matrix[step, step - 1] = size
            self._basis[step] = rest * ((size > 0) / size.clamp_min(info.tiny))
            yield self._basis[step].view(self._shape)

    def take(self, image: Tensor) -> None:
        """Takes the operator's product with the last vector."""
        step, self._rest = self._taken, image.flatten()
        self._matrix[step, step] = self._basis[step] @ self._rest
        self._taken += 1

    def combined(self, weights: Tensor) -> Tensor:
        """The sum of the basis' vectors with weights ``(k,)``, shaped as the start."""
        return (weights.to(self._basis) @ self.basis).view(self._shape)
