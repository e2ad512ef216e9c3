r"""The linearization of a chain of activations and linear layers, in closed form.

For :math:`g = A_n \phi_{n-1} (\cdots A_1 \phi_0(x))`, with :math:`h_i` the input of
:math:`\phi_i` and :math:`D_i = \operatorname{diag} \phi_i'(h_i)`, the Jacobian is
:math:`J = A_n D_{n-1} \cdots A_1 D_0`. The slopes are computed once, so products with J and its
transpose need no graph. The gradient of value and bilinear form together takes one tangent pass
and one adjoint pass, both with plain convolutions: `_ChainFunction`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from iresflow.linearization import Linearization, Products
from iresflow.lipschitz.activations import Activation
from iresflow.lipschitz.normalized import NormalizedLayer, broadcast_bias
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
        x = stage.layer.multiply(x, stage.weight) + broadcast_bias(stage.bias, x.ndim)
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
        for stage, slope, kernel in zip(
            reversed(self._stages), reversed(self._slopes), reversed(self._kernels), strict=True
        ):
            u = _stacked(stage.layer.multiply_adjoint, u, kernel)
            if slope is not None:
                u = _gathered(u.mul_(slope), stage.activation, 2)
        return u

    def jvp(self, v: Tensor) -> Tensor:
        return self.tangents(v)[-1]

    @torch.no_grad()
    def tangents(self, v: Tensor) -> list[Tensor]:
        """v, and its images behind each link, each ``(K, B, ...)``."""
        tangents = [v]
        for stage, slope in zip(self._stages, self._slopes, strict=True):
            t = tangents[-1]
            if slope is not None:
                t = _spread(t, stage.activation, 2) * slope
            tangents.append(_stacked(stage.layer.multiply, t, stage.weight))
        return tangents

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
    """

    def __init__(
        self, stages: Sequence[Stage], point: Tensor, lipschitz: float | None = None
    ) -> None:
        self.point = point
        self.lipschitz = lipschitz
        self._stages = tuple(stages)
        self._inputs: list[Tensor] = []  # h_i, what enters each stage
        self._tangents: tuple[Tensor, list[Tensor]] | None = (
            None  # v, and A.. D.. v before stage i
        )
        self._attached: Tensor | None = None
        self._kernels: list[Tensor] = []
        slopes: list[Tensor | None] = []  # phi_i'(h_i)
        with torch.no_grad():
            x = point.detach()
            for stage in self._stages:
                self._inputs.append(x)
                slope = None
                if stage.activation is not None:
                    x, slope = stage.activation.value_and_slope(x, stage.beta)
                slopes.append(slope)
                x = stage.layer.multiply(x, stage.weight)
                x += broadcast_bias(stage.bias, x.ndim)
                self._kernels.append(stage.layer.adjoint_kernel(stage.weight.detach()))
            self._value = x
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
        return self._tangents[1][-1]

    def narrow(self, index: Tensor) -> Products:
        return self._products.narrow(index)

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
    :math:`\lambda = \partial / \partial t` behind a linear layer, with
    :math:`(p, q) = (A^\top \ell, A^\top \lambda)`:

    - :math:`\partial / \partial A = \ell\, \phi(h)^\top + \lambda\, (\phi'(h) t)^\top`,
    - before the activation, :math:`\ell = \phi'(h) p + \phi''(h)\, t\, q` (summed over the K
      directions) and :math:`\lambda = \phi'(h) q`,
    - a concatenated activation repeats t, and adds up the adjoints of its blocks,
    - for a slope with :math:`\phi_\beta(h) = \phi_1(\beta h) / \beta`:
      :math:`\partial\phi / \partial\beta = (h \phi' - \phi) / \beta` and
      :math:`\partial\phi' / \partial\beta = h \phi'' / \beta`.
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
            form = dot(w, image)
        ctx.save_for_backward(w, *chain._inputs, *tangents, *chain._kernels, *parameters)
        return chain._value.view_as(chain._value), form

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_value: Tensor | None, grad_form: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        count = len(ctx.stages)
        w, *saved = ctx.saved_tensors
        inputs, tangents = saved[:count], saved[count : 2 * count]
        kernels, parameters = saved[2 * count : 3 * count], saved[3 * count :]
        adjoint = _Adjoint.start(w, tangents[0], inputs[0], grad_value, grad_form)
        gradients: list[Tensor | None] = []
        for i in reversed(range(count)):
            _, bias, beta = parameters[3 * i : 3 * i + 3]
            needed = ctx.needs_input_grad[3 + 3 * i : 6 + 3 * i]
            stage = adjoint.through(ctx.stages[i], inputs[i], tangents[i], kernels[i], beta)
            g_bias = _sum_to_bias(stage.bias_adjoint, bias) if needed[1] else None
            gradients = [stage.weight_gradient, g_bias, stage.beta_gradient, *gradients]
            adjoint = stage.adjoint
        return (None, None, adjoint.primal, *gradients)


@dataclass(frozen=True)
class _Adjoint:
    """Adjoints of a stage's primal ``(B, ...)`` and of its tangents ``(K, B, ...)`` or None."""

    primal: Tensor
    tangent: Tensor | None

    @staticmethod
    def start(
        w: Tensor | None,
        v: Tensor | None,
        point: Tensor,
        grad_value: Tensor | None,
        grad_form: Tensor | None,
    ) -> "_Adjoint":
        primal = torch.zeros_like(point) if grad_value is None else grad_value
        if w is None or v is None or grad_form is None:
            return _Adjoint(primal, None)
        return _Adjoint(primal, w * grad_form.reshape(*grad_form.shape, *[1] * (w.ndim - 2)))

    def through(
        self,
        stage: Stage,
        h: Tensor,
        t: Tensor | None,
        kernel: Tensor,
        beta: Tensor | None,
    ) -> "_StageGradient":
        """The adjoints before a stage with input h and tangents t, and its gradients."""
        layer, batch = stage.layer, self.primal.shape[0]
        phi = stage.activation
        value, slope, curvature = (h, None, None) if phi is None else phi.jet(h, beta)
        activated, behind = value, self.primal
        if self.tangent is not None and t is not None:
            moved = t if slope is None else _spread(t, phi, 2) * slope
            activated = torch.cat([value, moved.flatten(0, 1)])
            behind = torch.cat([self.primal, self.tangent.flatten(0, 1)])
        weight_gradient = layer.weight_gradient(activated, behind)
        before = layer.multiply_adjoint(behind, kernel)
        p = before[:batch]
        q = None
        if self.tangent is not None and t is not None:
            q = before[batch:].view(*t.shape[:2], *before.shape[1:])
        if slope is None or curvature is None:
            return _StageGradient(_Adjoint(p, q), weight_gradient, self.primal, None)
        primal = p * slope
        tangent = None
        mixed = None
        if q is not None and t is not None:
            mixed = (_spread(t, phi, 2) * q).sum(0).mul_(curvature)
            primal += mixed
            tangent = _gathered(q * slope, phi, 2)
        beta_gradient = None
        if beta is not None:
            wide = _spread(h, phi, 1)
            beta_gradient = torch.addcmul(-value, wide, slope).mul_(p)
            if mixed is not None:
                beta_gradient.addcmul_(wide, mixed)
            beta_gradient = beta_gradient.sum() / beta
        adjoint = _Adjoint(_gathered(primal, phi, 1), tangent)
        return _StageGradient(adjoint, weight_gradient, self.primal, beta_gradient)


@dataclass(frozen=True)
class _StageGradient:
    adjoint: _Adjoint
    weight_gradient: Tensor
    bias_adjoint: Tensor
    beta_gradient: Tensor | None


def _spread(x: Tensor, activation: Activation | None, channels: int) -> Tensor:
    """Each entry as often as a concatenated activation has values for it, along the channels."""
    if activation is None or activation.width == 1:
        return x
    return torch.cat([x] * activation.width, dim=channels)


def _gathered(x: Tensor, activation: Activation | None, channels: int) -> Tensor:
    """The adjoint of `_spread`."""
    if activation is None or activation.width == 1:
        return x
    return x.unflatten(channels, (activation.width, -1)).sum(channels)


def _stacked(product: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
    """Applies a product for batches ``(N, ...)`` to a stack ``(K, B, ...)``."""
    result = product(x.flatten(0, 1), weight)
    return result.view(*x.shape[:2], *result.shape[1:])


def _sum_to_bias(adjoint: Tensor, bias: Tensor) -> Tensor:
    """The bias' gradient: summed over pixels, and over samples unless each has its own bias."""
    pixels = adjoint.flatten(2).sum(2) if adjoint.ndim > 2 else adjoint
    return pixels if bias.ndim == 2 else pixels.sum(0)
