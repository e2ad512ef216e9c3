r"""What a chain does at its activations: values and slopes, and the adjoint of both.

All of it is pointwise but for a concatenated activation, which gives several values for each
entry. The tensors of the others are handed to their kernels as one long vector in the order of
memory, so one compiled kernel serves every shape.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.passes.kernels import Kernel, compiles

__all__ = ["PointwiseAdjoint", "activate", "adjoint", "scale_adjoint", "scale_tangent"]


class PointwiseAdjoint(NamedTuple):
    """What one activation gives to the backward pass; stacks are ``((1 + K) B, ...)``.

    Attributes:
        entered: What entered the linear layer after it: the value, then the K tangents.
        adjoints: Before the activation: that of the value, then those of the tangents.
        beta: The gradient of the trainable slope, or None.
    """

    entered: Tensor
    adjoints: Tensor
    beta: Tensor | None


def activate(phi: Activation, h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
    r""":math:`\phi(h)`, and for order 1 :math:`\phi'(h)`, for h ``(B, C, ...)``."""
    if order == 0 or phi.width > 1 or not compiles(h):
        return phi.jet(h, beta, order)
    value, slope = _value_kernel(type(phi))(_vector(h), beta)
    return _shaped(value, h), _shaped(slope, h)


def scale_tangent(phi: Activation, t: Tensor, slope: Tensor) -> Tensor:
    r""":math:`\phi'(h)\, t` for tangents ``(K B, C, ...)``."""
    return _by_sample(torch.mul, _repeated(t, phi.width, 1), slope)


def scale_adjoint(phi: Activation, u: Tensor, slope: Tensor) -> Tensor:
    r"""The adjoint of `scale_tangent`; it overwrites u."""
    return _gathered(_by_sample(Tensor.mul_, u, slope), phi.width, 1)


def adjoint(
    phi: Activation, h: Tensor, t: Tensor, after: Tensor, beta: Tensor | None
) -> PointwiseAdjoint:
    r"""The adjoint of :math:`(\phi(h), \phi'(h) t)`, and those values themselves.

    Arguments:
        phi: The activation.
        h: ``(B, C, ...)``.
        t: ``(K B, C, ...)``; K may be 0.
        after: Adjoints of the outputs, ``((1 + K) B, width C, ...)``.
        beta: The activation's trainable slope, or None.
    """
    batch = len(h)
    kernel = _adjoint_kernel(type(phi))
    p, q = after[:batch], after[batch:]
    if phi.width > 1 or not compiles(h):
        t, q = (x.view(len(t) // batch, batch, *x.shape[1:]) for x in (t, q))
        return PointwiseAdjoint(*kernel.function(h, t, p, q, beta))
    stack = (len(t) // batch, 1, h.numel())
    entered, adjoints, gradient = kernel(
        _vector(h), _vector(t).view(stack), _vector(p), _vector(q).view(stack), beta
    )
    return PointwiseAdjoint(_shaped(entered, h), _shaped(adjoints, h), gradient)


@functools.cache
def _value_kernel(phi: type[Activation]) -> Kernel:
    return Kernel(lambda h, beta: phi.jet(h, beta, 1))


@functools.cache
def _adjoint_kernel(phi: type[Activation]) -> Kernel:
    return Kernel(_adjoint_function(phi.jet, phi.width))


def _adjoint_function(
    jet: Callable[[Tensor, Tensor | None, int], tuple[Tensor, ...]], width: int
) -> Callable[..., tuple[Tensor, Tensor, Tensor | None]]:
    r"""The function of `adjoint`, for tangents and their adjoints ``(K, B, C, ...)``.

    With p and q the adjoints of :math:`\phi(h)` and :math:`\phi'(h) t`, those of h and t are
    :math:`\phi' p + \phi'' \sum_K t q` and :math:`\phi' q`; a concatenated activation repeats h
    and t, and adds up the adjoints of its blocks. For a slope with
    :math:`\phi_\beta(h) = \phi_1(\beta h) / \beta`, :math:`\partial\phi / \partial\beta =
    (h \phi' - \phi) / \beta` and :math:`\partial\phi' / \partial\beta = h \phi'' / \beta`.
    """

    def function(
        h: Tensor, t: Tensor, p: Tensor, q: Tensor, beta: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        value, slope, curvature = jet(h, beta, 2)
        wide = _repeated(t, width, 2)
        mixed = (wide * q).sum(0) * curvature
        primal, tangent = p * slope + mixed, q * slope
        gradient = None
        if beta is not None:
            h = _repeated(h, width, 1)
            gradient = ((h * slope - value) * p + h * mixed).sum() / beta
        entered = torch.cat([value, (wide * slope).flatten(0, 1)])
        adjoints = torch.cat(
            [_gathered(primal, width, 1), _gathered(tangent, width, 2).flatten(0, 1)]
        )
        return entered, adjoints, gradient

    return function


def _repeated(x: Tensor, width: int, channels: int) -> Tensor:
    """Each entry as often as a concatenated activation has values for it, along the channels."""
    return x if width == 1 else torch.cat([x] * width, dim=channels)


def _gathered(x: Tensor, width: int, channels: int) -> Tensor:
    """The adjoint of `_repeated`."""
    return x if width == 1 else x.unflatten(channels, (width, -1)).sum(channels)


def _by_sample(
    product: Callable[[Tensor, Tensor], Tensor], stack: Tensor, slope: Tensor
) -> Tensor:
    """A product of a stack ``(K B, ...)`` with the same ``(B, ...)`` for all K directions."""
    if len(stack) == len(slope):
        return product(stack, slope)
    return product(stack.view(-1, *slope.shape), slope).view(stack.shape)


def _vector(x: Tensor) -> Tensor:
    """All entries in the order of memory, ``(1, n)``, of what `same_layout` returned.

    Raises:
        ValueError: the channels are not last, or there are gaps: entries would be mistaken.
    """
    if not (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).is_contiguous():
        raise ValueError(f"a kernel takes channels last in memory, got strides {x.stride()}")
    return x.as_strided((1, x.numel()), (x.numel(), 1))


def _shaped(vector: Tensor, like: Tensor) -> Tensor:
    """What was made a vector, or a stack of vectors ``(N, n)``, as a batch ``(N B, ...)``."""
    if like.ndim != 4:
        return vector.view(-1, *like.shape[1:])
    _, channels, height, width = like.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return vector.as_strided((len(vector) * len(like), channels, height, width), strides)
