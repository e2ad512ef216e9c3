r"""The linearization of a chain of activations and linear layers, in closed form.

For :math:`g = A_n \phi_{n-1} (\cdots A_1 \phi_0(x))`, with :math:`h_i` the input of
:math:`\phi_i` and :math:`D_i = \operatorname{diag} \phi_i'(h_i)`, the Jacobian is
:math:`J = A_n D_{n-1} \cdots A_1 D_0`. The slopes are computed once, so products with J and its
transpose need no graph. The gradient of value and bilinear form together takes one tangent pass
and one adjoint pass, both with plain convolutions: `_ChainFunction`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from iresflow.linearization import Linearization, Products
from iresflow.lipschitz.activations import Activation
from iresflow.lipschitz.convolution import same_layout
from iresflow.lipschitz.normalized import NormalizedLayer, broadcast_bias
from iresflow.lipschitz.pointwise import activate, adjoint, scale_adjoint, scale_tangent
from iresflow.tensors import dot

__all__ = ["ChainLinearization", "Stage", "evaluate_chain"]


@final
@dataclass(frozen=True)
class Stage:
    """One link of a chain: an activation (or none), then a linear layer, with their values now.

    Attributes:
        weight: The normalised weight.
        bias: ``(C,)``, or ``(B, C)`` where a context shifts each sample's bias.
        beta: The activation's trainable slope, or None.
    """

    activation: Activation | None
    layer: NormalizedLayer
    weight: Tensor
    bias: Tensor
    beta: Tensor | None


def evaluate_chain(stages: Sequence[Stage], x: Tensor) -> Tensor:
    """g(x) alone, by ordinary operations that autograd records: ``(B, *event)`` to the same."""
    for stage in stages:
        if stage.activation is not None:
            x, _ = stage.activation.value_and_slope(x, stage.beta)
        x = _apply_layer(stage, x)
    return x


@final
class _ChainProducts(Products):
    """Products with the Jacobians of a chain whose slopes are known.

    Arguments:
        stages: The links, first to last.
        slopes: Of each link's activation, ``(B, ...)``, or None for no activation.
        kernels: Of each link's adjoint.
        lipschitz: A certified bound of the chain's Lipschitz constant, or None.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        slopes: Sequence[Tensor | None],
        kernels: Sequence[Tensor],
        lipschitz: float | None,
    ) -> None:
        self.lipschitz = lipschitz
        self._stages = stages
        self._slopes = slopes
        self._kernels = kernels

    @torch.no_grad()
    def vjp(self, u: Tensor) -> Tensor:
        shape, u = u.shape, same_layout(u.flatten(0, 1))
        for stage, slope, kernel in zip(
            reversed(self._stages), reversed(self._slopes), reversed(self._kernels), strict=True
        ):
            u = same_layout(stage.layer.multiply_adjoint(u, kernel))
            if stage.activation is not None and slope is not None:
                u = scale_adjoint(stage.activation, u, slope)
        return u.view(shape)

    def jvp(self, v: Tensor) -> Tensor:
        return self.tangents(v)[-1].view(v.shape)

    @torch.no_grad()
    def tangents(self, v: Tensor) -> list[Tensor]:
        """v, and its images behind each link, each ``(K B, ...)``."""
        tangents = [same_layout(v.flatten(0, 1))]
        for stage, slope in zip(self._stages, self._slopes, strict=True):
            t = tangents[-1]
            if stage.activation is not None and slope is not None:
                t = scale_tangent(stage.activation, t, slope)
            tangents.append(same_layout(stage.layer.multiply(t, stage.weight)))
        return tangents

    def to(self, dtype: torch.dtype) -> "_ChainProducts":
        """The same in another type of float."""
        stages = [
            replace(s, weight=s.weight.detach().to(dtype), bias=s.bias.detach().to(dtype))
            for s in self._stages
        ]
        slopes = [None if slope is None else slope.to(dtype) for slope in self._slopes]
        kernels = [kernel.to(dtype) for kernel in self._kernels]
        return _ChainProducts(stages, slopes, kernels, None)

    def narrow(self, index: Tensor) -> Products:
        slopes = [None if slope is None else slope[index] for slope in self._slopes]
        return _ChainProducts(self._stages, slopes, self._kernels, self.lipschitz)


@final
class ChainLinearization(Linearization):
    """A chain at a point. See `Linearization` for the contract.

    Arguments:
        stages: The links, first to last; range and domain have the same shape.
        point: Where to linearize, ``(B, *event)``.
        lipschitz: A certified bound of the chain's Lipschitz constant, or None.
        recompute: Whether the backward pass computes the hidden tensors anew, instead of keeping
            them: two more products a layer, for memory that no longer grows with the layers.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        point: Tensor,
        lipschitz: float | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        self.point = point
        self.lipschitz = lipschitz
        self.recompute = recompute
        self._stages = tuple(stages)
        self._tangents: tuple[Tensor, list[Tensor]] | None = (
            None  # v, and A.. D.. v before stage i
        )
        self._attached: Tensor | None = None
        with torch.no_grad():
            self._inputs, slopes, self._value = _primal(self._stages, point.detach())
            self._kernels = [s.layer.adjoint_kernel(s.weight.detach()) for s in self._stages]
        self._products = _ChainProducts(self._stages, slopes, self._kernels, lipschitz)

    @property
    def value(self) -> Tensor:
        if not self._needs_graph():
            return self._value
        if self._attached is None:
            self._attached, _ = self._apply(None, None)
        return self._attached

    def vjp(self, u: Tensor) -> Tensor:
        return self._products.vjp(u)

    def jvp(self, v: Tensor) -> Tensor:
        if self._tangents is None or self._tangents[0] is not v:
            self._tangents = (v, self._products.tangents(v))
        return self._tangents[1][-1].view(v.shape)

    def narrow(self, index: Tensor) -> Products:
        return self._products.narrow(index)

    def reduced(self, dtype: torch.dtype) -> Products:
        return self._products.to(dtype)

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        if not self._needs_graph():
            return dot(w, self.jvp(v))
        value, form = self._apply(w, v)
        if self._attached is None:
            self._attached = value
        return form

    def _apply(self, w: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters = [p for s in self._stages for p in (s.weight, s.bias, s.beta)]
        if v is not None:
            self.jvp(v)  # kept from the last call, if that was for the same v
        return _ChainFunction.apply(self, w, self.point, *parameters)

    def _needs_graph(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        leaves = [self.point, *(t for s in self._stages for t in (s.weight, s.bias, s.beta))]
        return any(t is not None and t.requires_grad for t in leaves)


class _ChainFunction(torch.autograd.Function):
    r"""Value and bilinear form of a chain, with one adjoint pass for both.

    Forward, with t the tangent of v: :math:`h_{i+1} = A\phi(h_i) + b` and
    :math:`t_{i+1} = A (\phi'(h_i) t_i)`; outputs are :math:`h_n` and
    :math:`s = w^\top t_n` with w and v constant.

    Backward, from adjoints :math:`\ell = \partial / \partial h` and
    :math:`\lambda = \partial / \partial t` behind a linear layer, stacked along the batch so that
    each product runs once: :math:`\partial / \partial A = \ell\, \phi(h)^\top + \lambda\,
    (\phi'(h) t)^\top`, and :math:`(A^\top \ell, A^\top \lambda)` go through the activation as
    `iresflow.lipschitz.pointwise.adjoint` says.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (attributes are set on it)
        chain: ChainLinearization,
        w: Tensor | None,
        point: Tensor,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.stages = chain._stages
        tangents: list[Tensor | None] = [None] * len(chain._stages)
        form = point.new_zeros(())
        if w is not None and chain._tangents is not None:
            w = w.detach()
            *tangents, image = chain._tangents[1]
            form = dot(w, image.view(w.shape))
        hidden: list[Tensor | None] = [*chain._inputs, *tangents]
        ctx.recompute = chain.recompute
        if chain.recompute:
            hidden = [chain._inputs[0], tangents[0]]
        ctx.save_for_backward(w, *chain._kernels, *parameters, *hidden)
        return chain._value.view_as(chain._value), form

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_value: Tensor | None, grad_form: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        count = len(ctx.stages)
        w, *saved = ctx.saved_tensors
        kernels, parameters = saved[:count], saved[count : 4 * count]
        hidden = saved[4 * count :]
        if ctx.recompute:
            hidden = _recomputed(ctx.stages, kernels, *hidden)
        inputs, tangents = hidden[:count], hidden[count:]
        batch = len(inputs[0])
        behind = _start(inputs[0], w, grad_value, grad_form)
        gradients: list[Tensor | None] = []
        for i in reversed(range(count)):
            stage, h, t = ctx.stages[i], inputs[i], tangents[i]
            if t is None or len(behind) == batch:
                t = h[:0]
            _, bias, beta = parameters[3 * i : 3 * i + 3]
            before = same_layout(stage.layer.multiply_adjoint(behind, kernels[i]))
            if stage.activation is None:
                entered, g_beta = torch.cat([h, t]), None
            else:
                entered, before, g_beta = adjoint(stage.activation, h, t, before, beta)
            needed = ctx.needs_input_grad[3 + 3 * i : 5 + 3 * i]
            g_weight = stage.layer.weight_gradient(entered, behind) if needed[0] else None
            g_bias = _sum_to_bias(behind[:batch], bias) if needed[1] else None
            gradients = [g_weight, g_bias, g_beta, *gradients]
            behind = before
        return (None, None, behind[:batch], *gradients)


def _primal(
    stages: Sequence[Stage], x: Tensor
) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
    """What enters each stage, h_i; the slopes of the activations there; and g(x)."""
    x = same_layout(x)
    inputs: list[Tensor] = []
    slopes: list[Tensor | None] = []
    for stage in stages:
        inputs.append(x)
        slope = None
        if stage.activation is not None:
            x, slope = activate(stage.activation, x, stage.beta)
        slopes.append(slope)
        x = same_layout(_apply_layer(stage, x))
    return inputs, slopes, x


def _recomputed(
    stages: Sequence[Stage], kernels: Sequence[Tensor], point: Tensor, v: Tensor | None
) -> list[Tensor | None]:
    """What enters each stage and, where there are tangents v ``(K B, ...)``, theirs."""
    inputs, slopes, _ = _primal(stages, point)
    if v is None:
        return [*inputs, *[None] * len(inputs)]
    return [*inputs, *_ChainProducts(stages, slopes, kernels, None).tangents(v[None])[:-1]]


def _start(
    point: Tensor, w: Tensor | None, grad_value: Tensor | None, grad_form: Tensor | None
) -> Tensor:
    """Adjoints of the chain's value and of its K tangents, ``((1 + K) B, *event)``."""
    primal = torch.zeros_like(point) if grad_value is None else grad_value
    if w is None or grad_form is None:
        return same_layout(primal)
    tangent = w * grad_form.reshape(*grad_form.shape, *[1] * (w.ndim - 2))
    return same_layout(torch.cat([primal, tangent.flatten(0, 1)]))


def _apply_layer(stage: Stage, x: Tensor) -> Tensor:
    """The linear layer and its bias, which is narrower than a weight that was widened."""
    bias = stage.bias.to(stage.weight.dtype)
    if bias.ndim == 1:
        return stage.layer.multiply(x, stage.weight, bias)
    x = stage.layer.multiply(x, stage.weight)
    return x + broadcast_bias(bias, x.ndim)


def _sum_to_bias(adjoint: Tensor, bias: Tensor) -> Tensor:
    """The bias' gradient: summed over pixels, and over samples unless each has its own bias."""
    pixels = tuple(range(2, adjoint.ndim))
    if bias.ndim == 2:
        return adjoint.sum(pixels) if pixels else adjoint
    return adjoint.sum((0, *pixels))
