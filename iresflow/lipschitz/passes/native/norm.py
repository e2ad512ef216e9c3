"""The norm of a layer by bidiagonalisation, compiled for the processor: see ``cpp/norm.h``."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iresflow.ambient import keeps_arithmetic
from iresflow.lipschitz.passes.kernels import kernels_compile
from iresflow.lipschitz.passes.native.library import SCALARS, Link, Shape, is_plain, library

__all__ = ["native_norm"]


def native_norm(weight: Tensor, left: Tensor) -> Tensor | None:
    """The operator norm from below, a scalar with its gradient, as `bidiagonalization` has it.

    Arguments:
        weight: ``(D, C)``, or ``(D, C, k, k)`` of a convolution with zero padding and stride 1.
        left: Where the iteration starts, ``(D,)`` or ``(D, H, W)`` of the same type; overwritten
            by where it ends.

    Returns:
        The norm; None for what the compiled code does not know, or where there is none.

    Raises:
        MemoryError: there is not enough memory.
    """
    known = weight.dtype in SCALARS and is_plain(weight) and left.dtype == weight.dtype
    if not (known and kernels_compile() and library() is not None):
        return None
    return _NativeNorm.apply(weight, left)


@keeps_arithmetic
class _NativeNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, left: Tensor) -> Tensor:  # noqa: ANN401
        scalar, weight = SCALARS[weight.dtype], weight.detach().contiguous()
        start, gradient = left.contiguous(), torch.empty_like(weight)
        link = Link(inputs=weight.shape[1], outputs=weight.shape[0])
        link.side = weight.shape[2] if weight.ndim == 4 else 1
        link.weight, link.weight_gradient = weight.data_ptr(), gradient.data_ptr()
        matrix = weight.new_empty(getattr(library(), f"packed_size_{scalar}")(link))
        link.matrix = matrix.data_ptr()
        size = left.shape[1:] if left.ndim == 3 else (1, 1)
        norm = weight.new_empty((), dtype=torch.float64)
        bidiagonal = getattr(library(), f"bidiagonal_{scalar}")
        bidiagonal(Shape(1, 1, 1, *size), link, start.data_ptr(), norm.data_ptr())
        if start is not left:
            left.copy_(start)
        ctx.save_for_backward(gradient)
        return norm.to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None
