"""Nodes of autograd's graph whose derivatives are right to any order, or refused beyond the first.

Most of a flow's gradients are computed in closed form, without a graph. These nodes say what a
derivative of such a gradient is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iresflow.ambient import keeps_arithmetic
from iresflow.errors import DerivativeError

__all__ = ["any_order", "first_order", "recorded_gradients"]


def first_order(x: Tensor, error: DerivativeError | None = None) -> Tensor:
    """x, whose gradient is right, and a derivative of that refused.

    Arguments:
        x: Any tensor.
        error: What to raise; None for what is true of estimated log-determinants.

    Raises:
        DerivativeError: in a backward pass of which a graph is made.
    """
    return _FirstOrder.apply(x, error or DerivativeError()) if x.requires_grad else x


@keeps_arithmetic
class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, error: DerivativeError) -> Tensor:  # noqa: ANN401
        ctx.error = error
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        if torch.is_grad_enabled():
            raise ctx.error
        return grad, None


def any_order(first: Tensor, function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """A tensor, with its own first derivatives, and those of a function to any order.

    Arguments:
        first: What has the function's gradient.
        function: Of the operands, by operations that autograd records.
        operands: Whatever the function depends on.

    Returns:
        ``first``. Where a graph of its gradient is asked for, that is the function's.
    """
    return _AnyOrder.apply(first, function, *operands)


@keeps_arithmetic
class _AnyOrder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        first: Tensor,
        function: Callable[..., Tensor],
        *operands: Tensor,
    ) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*operands)
        return first.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        operands = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return (grad, None, *[None] * len(operands))
        return (None, None, *recorded_gradients(ctx.function, operands, grad))


def recorded_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of a function in each of its operands, with a graph where autograd makes one.

    Arguments:
        function: Of the operands, by operations that autograd records.
        tensors: The operands. Where one depends on another, the others stay as they are.
        grad: Of the function's value.
    """
    with torch.enable_grad():
        operands = [t.view_as(t) if t.requires_grad else t for t in tensors]
        value = function(*operands)
    needed = [t for t in operands if t.requires_grad]
    if not needed or not value.requires_grad:
        return [None] * len(tensors)
    graph = torch.is_grad_enabled()
    found = torch.autograd.grad(value, needed, grad, create_graph=graph, allow_unused=True)
    rest = iter(found)
    return [next(rest) if t.requires_grad else None for t in operands]
