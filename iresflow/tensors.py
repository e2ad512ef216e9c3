"""Per-sample sums and norms, probe vectors, and what people pass as arrays.

Two layouts occur. A *batch* is ``(B, *event)``. A *stack of directions* is ``(K, B, *event)``:
K vectors for each sample, as the estimators and the linearizations exchange them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.ambient import keeps_arithmetic
from iresflow.streams import BITS, NORMAL, Stream, draw

__all__ = [
    "Probe",
    "as_tensor",
    "at_least_float32",
    "dot",
    "gaussian",
    "linear",
    "mark_written",
    "norm_per_sample",
    "norms",
    "per_sample",
    "require_tensor",
    "rademacher",
    "spread",
    "sum_per_sample",
    "transformed",
    "wide_norm",
    "widest",
]

Probe = Callable[[int, Tensor, Stream | None], Tensor]
"""Draws ``(K, B, *event)`` probes with mean zero and identity covariance for a batch."""


def as_tensor(name: str, values: object) -> Tensor:
    """What a person passed for an array: a tensor as it is, or one of the numbers in it.

    Arguments:
        name: What it is called in an error.
        values: A tensor, a NumPy array, a table that NumPy takes, or sequences of equal lengths.

    Raises:
        ValueError: it can't be made a tensor, misses some of its numbers under a mask, or is
            sparse.
    """
    if not isinstance(values, Tensor):
        try:
            array: np.ndarray = np.require(values, requirements=["C", "W"])
            tensor = torch.from_numpy(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} can't be made a tensor: {error}") from None
        if np.ma.is_masked(values):
            count = int(np.ma.count_masked(values))
            raise ValueError(
                f"{name} masks {count} of its {array.size} numbers: nothing is known there"
            )
        return tensor
    if values.layout != torch.strided:
        raise ValueError(f"{name} is a sparse tensor ({values.layout}); allowed are dense ones")
    return values


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for ``(B, C)`` and ``(D, C)``, with a gradient in that arithmetic.

    PyTorch's own gradient is in that of the place where the backward pass is started.
    """
    if transformed() or not torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    product = _Linear.apply(x, weight)
    return product if bias is None else product + bias


@keeps_arithmetic
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        return grad @ weight if of_x else None, grad.mT @ x if of_weight else None


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (grad, jvp, vmap, ...) is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def require_tensor(name: str, value: object) -> None:
    """Raises a ValueError where a value is no tensor with all of its entries in memory."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} are tensors, got a {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{name} are dense tensors, got {value.layout}: call to_dense() first")


def mark_written(tensors: Iterable[Tensor]) -> None:
    """Counts a write to each: for who writes by an operation that does not count it itself.

    What is kept of a weight is kept until its count changes. PyTorch's fused optimisers don't
    change it, nor do CUDA graphs.
    """
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


def sum_per_sample(x: Tensor) -> Tensor:
    """Sum of all entries of each sample: ``(B, *event)`` to ``(B,)``."""
    return x.flatten(1).sum(1)


def norm_per_sample(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: ``(B, *event)`` to ``(B,)``."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def at_least_float32(x: Tensor) -> Tensor:
    """x, widened where its type of float has fewer digits than float32."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


def widest(device: torch.device) -> torch.dtype:
    """The floating-point type of the most digits that a device computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide_norm(x: Tensor) -> Tensor:
    """`norm_per_sample` in the widest type of the device, without a graph."""
    return norm_per_sample(x.detach().to(widest(x.device)))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two stacks of directions: ``(K, B, *event)`` twice to ``(K, B)``."""
    return (a * b).flatten(2).sum(2)


def norms(x: Tensor) -> Tensor:
    """Euclidean norms of a stack of directions: ``(K, B, *event)`` to ``(K, B)``."""
    return dot(x, x).sqrt()


def spread(scalars: Tensor, like: Tensor) -> Tensor:
    """One scalar for each direction ``(K, B)``, shaped to multiply ``(K, B, *event)``."""
    return scalars.to(like.dtype).reshape(*scalars.shape, *[1] * (like.ndim - 2))


def per_sample(scalars: Tensor, like: Tensor) -> Tensor:
    """One scalar for each sample ``(B,)``, shaped to multiply ``(B, *event)``."""
    return scalars.reshape(-1, *[1] * (like.ndim - 1))


def rademacher(count: int, like: Tensor, generator: Stream | None = None) -> Tensor:
    """Probes with independent entries -1 or 1, shape ``(count, *like.shape)``.

    Of all distributions with independent entries, this one gives Hutchinson's trace estimate the
    smallest variance (Avron and Toledo, 2011).
    """
    size = (count, *like.shape)
    bits = draw(BITS, size, generator, batch=1, device=like.device, dtype=torch.int8)
    return bits.to(like.dtype).mul_(2).sub_(1)


def gaussian(count: int, like: Tensor, generator: Stream | None = None) -> Tensor:
    """Probes with independent standard normal entries, shape ``(count, *like.shape)``."""
    size = (count, *like.shape)
    return draw(NORMAL, size, generator, batch=1, device=like.device, dtype=like.dtype)
