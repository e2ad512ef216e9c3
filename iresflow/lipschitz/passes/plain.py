r"""The passes through a chain of activations and linear layers, in closed form, without a graph.

For :math:`g = A_n \phi_{n-1} (\cdots A_1 \phi_0(x))`, with :math:`h_i` the input of
:math:`\phi_i` and :math:`D_i = \operatorname{diag} \phi_i'(h_i)`, the Jacobian is
:math:`J = A_n D_{n-1} \cdots A_1 D_0`: what `Passes.primal` keeps is all that products with it
take. `TorchPasses` are for all layers, devices and types;
`iresflow.lipschitz.passes.native.passes` has others.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer, broadcast_bias
from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.passes.pointwise import activate, adjoint, scale_adjoint, scale_tangent

__all__ = ["Passes", "Primal", "Stage", "TorchPasses", "apply_layer", "detached"]

Slopes = Sequence[Tensor | None]
"""Of each link's activation, ``(B, ...)``, or None for no activation."""


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


def detached(stage: Stage) -> Stage:
    """The stage without a graph, its bias in the type of a weight that was widened."""
    weight, beta = stage.weight.detach(), stage.beta
    bias = stage.bias.detach().to(weight.dtype)
    return replace(stage, weight=weight, bias=bias, beta=None if beta is None else beta.detach())


class Primal(NamedTuple):
    """What enters each stage, :math:`h_i`; the slopes of the activations there; and g(x)."""

    inputs: list[Tensor]
    slopes: list[Tensor | None]
    value: Tensor


class Passes(ABC):
    """The passes through one chain. Images have their channels last in memory (`same_layout`)."""

    @abstractmethod
    def primal(self, x: Tensor) -> Primal:
        """At points ``(B, *event)``."""

    @abstractmethod
    def vjp(self, slopes: Slopes, u: Tensor) -> Tensor:
        r""":math:`J^\top u` for directions ``(K B, *event)``."""

    @abstractmethod
    def tangents(self, slopes: Slopes, v: Tensor) -> list[Tensor]:
        """v ``(K B, *event)``, and its images behind each link, each ``(K B, ...)``."""

    @abstractmethod
    def adjoint(
        self,
        inputs: Sequence[Tensor],
        tangents: Sequence[Tensor],
        behind: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor, list[Tensor | None]]:
        r"""The adjoint of the chain's value and of its tangents, in one pass.

        With t the tangent of v, :math:`h_{i+1} = A\phi(h_i) + b` and :math:`t_{i+1} = A
        (\phi'(h_i) t_i)`. From adjoints :math:`\ell = \partial / \partial h` and :math:`\lambda =
        \partial / \partial t` behind a linear layer: :math:`\partial / \partial A = \ell\,
        \phi(h)^\top + \lambda\, (\phi'(h) t)^\top`, and :math:`(A^\top \ell, A^\top \lambda)` go
        through the activation as `iresflow.lipschitz.passes.pointwise.adjoint` says.

        Arguments:
            inputs: What enters each stage, from `primal`.
            tangents: The tangents there, ``(K B, ...)`` each; none for K = 0.
            behind: Adjoints of the value and of its K tangents, ``((1 + K) B, *event)``.
            needed: Whether the gradients of each stage's weight, bias and slope are.

        Returns:
            The adjoint of x, and those three gradients of each stage.
        """

    @abstractmethod
    def to(self, dtype: torch.dtype) -> "Passes":
        """The passes in another type of float, as far as `vjp` and `tangents` go."""


@final
class TorchPasses(Passes):
    """The passes by operations of PyTorch.

    Arguments:
        stages: The links, first to last.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = [detached(stage) for stage in stages]
        with torch.no_grad():
            self._kernels = [s.layer.adjoint_kernel(s.weight) for s in self._stages]

    @torch.no_grad()
    def primal(self, x: Tensor) -> Primal:
        x = same_layout(x)
        inputs: list[Tensor] = []
        slopes: list[Tensor | None] = []
        for stage in self._stages:
            inputs.append(x)
            slope = None
            if stage.activation is not None:
                x, slope = activate(stage.activation, x, stage.beta)
            slopes.append(slope)
            x = same_layout(apply_layer(stage, x))
        return Primal(inputs, slopes, x)

    @torch.no_grad()
    def vjp(self, slopes: Slopes, u: Tensor) -> Tensor:
        for stage, slope, kernel in zip(
            reversed(self._stages), reversed(slopes), reversed(self._kernels), strict=True
        ):
            u = same_layout(stage.layer.multiply_adjoint(u, kernel))
            if stage.activation is not None and slope is not None:
                u = scale_adjoint(stage.activation, u, slope)
        return u

    @torch.no_grad()
    def tangents(self, slopes: Slopes, v: Tensor) -> list[Tensor]:
        tangents = [v]
        for stage, slope in zip(self._stages, slopes, strict=True):
            t = tangents[-1]
            if stage.activation is not None and slope is not None:
                t = scale_tangent(stage.activation, t, slope)
            tangents.append(same_layout(stage.layer.multiply(t, stage.weight)))
        return tangents

    @torch.no_grad()
    def adjoint(
        self,
        inputs: Sequence[Tensor],
        tangents: Sequence[Tensor],
        behind: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor, list[Tensor | None]]:
        batch = len(inputs[0])
        gradients: list[Tensor | None] = []
        for i in reversed(range(len(self._stages))):
            stage, h = self._stages[i], inputs[i]
            t = tangents[i] if tangents else h[:0]
            before = same_layout(stage.layer.multiply_adjoint(behind, self._kernels[i]))
            if stage.activation is None:
                entered, g_beta = torch.cat([h, t]), None
            else:
                entered, before, g_beta = adjoint(stage.activation, h, t, before, stage.beta)
            weight, bias = needed[3 * i : 3 * i + 2]
            g_weight = stage.layer.weight_gradient(entered, behind) if weight else None
            g_bias = _sum_to_bias(behind[:batch], stage.bias) if bias else None
            gradients = [g_weight, g_bias, g_beta, *gradients]
            behind = before
        return behind[:batch], gradients

    def to(self, dtype: torch.dtype) -> Passes:
        return TorchPasses(
            [replace(s, weight=s.weight.to(dtype), bias=s.bias.to(dtype)) for s in self._stages]
        )


def apply_layer(stage: Stage, x: Tensor) -> Tensor:
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
