"""Lanczos' process: a basis in which a symmetric operator is tridiagonal, vector by vector."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from iresflow.tensors import widest

__all__ = ["Tridiagonal", "lanczos_process"]

Tridiagonal = tuple[Tensor, Tensor]
"""An orthonormal basis ``(k, n)``, and the operator in it ``(k, k)``, in the widest type."""

ROUNDED = 256
"""In units of eps: how much of a vector is rounding, once a part of it has been taken away."""


def lanczos_process(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> Iterator[Tridiagonal]:
    """Yields a longer basis after each product, of what powers of the operator make of a start.

    The basis is kept orthogonal in full (Golub and Van Loan, Matrix Computations, 10.3). It ends
    with vectors of zeros where rounding alone has left a direction. Nothing is read from the
    device, and tensors of a step are overwritten by none that follows.

    Arguments:
        product: With the operator, of tensors like the start; no graph is wanted of it.
        start: A tensor of n entries.
        steps: Products at most; there are no more than n.
    """
    shape, rest = start.shape, start.flatten()
    steps = min(steps, rest.numel())
    basis = rest.new_zeros(steps, rest.numel())
    matrix = rest.new_zeros(steps, steps, dtype=widest(rest.device))
    info = torch.finfo(rest.dtype)
    for step in range(steps):
        whole = torch.linalg.vector_norm(rest)
        for _ in range(2):  # once leaves what the next step's errors grow from
            rest = rest - (basis[:step] @ rest) @ basis[:step]
        size = torch.linalg.vector_norm(rest)
        size = torch.where(size > ROUNDED * info.eps * whole, size, 0)
        if step:
            matrix[step - 1, step] = matrix[step, step - 1] = size
        basis[step] = rest * ((size > 0) / size.clamp_min(info.tiny))
        rest = product(basis[step].view(shape)).flatten()
        matrix[step, step] = basis[step] @ rest
        yield basis[: step + 1], matrix[: step + 1, : step + 1]
