r"""The linearization of a chain of activations and linear layers, in closed form.

The slopes of the activations are computed once, so products with the Jacobian and its transpose
need no graph (`iresflow.lipschitz.passes.plain`). The gradient of value and bilinear form together
takes one tangent pass and one adjoint pass: `_ChainFunction`.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from iresflow.linearization import Linearization, PowerSums, Products, Series
from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.passes.native.passes import NativePasses, passes_through
from iresflow.lipschitz.passes.plain import Passes, Slopes, Stage, apply_layer
from iresflow.tensors import dot

__all__ = ["ChainLinearization", "evaluate_chain"]


def evaluate_chain(stages: Sequence[Stage], x: Tensor) -> Tensor:
    """g(x) alone, by ordinary operations that autograd records: ``(B, *event)`` to the same."""
    for stage in stages:
        if stage.activation is not None:
            x, _ = stage.activation.value_and_slope(x, stage.beta)
        x = apply_layer(stage, x)
    return x


@final
class _ChainProducts(Products):
    """Products with the Jacobians of a chain whose slopes are known.

    Arguments:
        passes: Through the chain.
        slopes: At the batch's points.
        lipschitz: A certified bound of the chain's Lipschitz constant, or None.
    """

    def __init__(self, passes: Passes, slopes: Slopes, lipschitz: float | None) -> None:
        self.lipschitz = lipschitz
        self._passes = passes
        self._slopes = slopes

    def vjp(self, u: Tensor) -> Tensor:
        return self._passes.vjp(self._slopes, same_layout(u.flatten(0, 1))).view(u.shape)

    def jvp(self, v: Tensor) -> Tensor:
        return self.tangents(v)[-1].view(v.shape)

    def tangents(self, v: Tensor) -> list[Tensor]:
        """v, and its images behind each link, each ``(K B, ...)``."""
        return self._passes.tangents(self._slopes, same_layout(v.flatten(0, 1)))

    def power_sums(self, v: Tensor, series: Series) -> PowerSums:
        if isinstance(self._passes, NativePasses):
            return self._passes.power_sums(self._slopes, v, series)
        return super().power_sums(v, series)

    def to(self, dtype: torch.dtype) -> "_ChainProducts":
        """The same in another type of float."""
        slopes = [None if slope is None else slope.to(dtype) for slope in self._slopes]
        return _ChainProducts(self._passes.to(dtype), slopes, None)

    def narrow(self, index: Tensor) -> Products:
        slopes = [None if slope is None else slope[index] for slope in self._slopes]
        return _ChainProducts(self._passes, slopes, self.lipschitz)


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
        self._passes = passes_through(self._stages, point)
        self._inputs, slopes, self._value = self._passes.primal(point.detach())
        self._products = _ChainProducts(self._passes, slopes, lipschitz)

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

    def power_sums(self, v: Tensor, series: Series) -> PowerSums:
        return self._products.power_sums(v, series)

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

    With t the tangent of v, the outputs are :math:`h_n` and :math:`s = w^\top t_n`, w and v
    constant. The backward pass is `Passes.adjoint`.
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
        ctx.passes = chain._passes
        tangents: list[Tensor] = []
        form = point.new_zeros(())
        if w is not None and chain._tangents is not None:
            w = w.detach()
            *tangents, image = chain._tangents[1]
            form = dot(w, image.view(w.shape))
        hidden = [*chain._inputs, *tangents]
        ctx.recompute = chain.recompute
        if chain.recompute:
            hidden = [chain._inputs[0], *tangents[:1]]
        ctx.count = len(parameters)
        # The parameters are saved so that autograd notices if they change in between.
        ctx.save_for_backward(w, *parameters, *hidden)
        return chain._value.view_as(chain._value), form

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_value: Tensor | None, grad_form: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        w, *saved = ctx.saved_tensors
        hidden = saved[ctx.count :]
        if ctx.recompute:
            hidden = _recomputed(ctx.passes, *hidden)
        stages = ctx.count // 3
        inputs, tangents = hidden[:stages], hidden[stages:]
        behind = _start(inputs[0], w, grad_value, grad_form)
        if len(behind) == len(inputs[0]):
            tangents = []
        before, gradients = ctx.passes.adjoint(inputs, tangents, behind, ctx.needs_input_grad[3:])
        return (None, None, before, *gradients)


def _recomputed(passes: Passes, point: Tensor, v: Tensor | None = None) -> list[Tensor]:
    """What enters each stage and, where there are tangents v ``(K B, ...)``, theirs."""
    inputs, slopes, _ = passes.primal(point)
    return inputs if v is None else [*inputs, *passes.tangents(slopes, v)[:-1]]


def _start(
    point: Tensor, w: Tensor | None, grad_value: Tensor | None, grad_form: Tensor | None
) -> Tensor:
    """Adjoints of the chain's value and of its K tangents, ``((1 + K) B, *event)``."""
    primal = torch.zeros_like(point) if grad_value is None else grad_value
    if w is None or grad_form is None:
        return same_layout(primal)
    tangent = w * grad_form.reshape(*grad_form.shape, *[1] * (w.ndim - 2))
    return same_layout(torch.cat([primal, tangent.flatten(0, 1)]))
