r"""The passes through a chain of links, in closed form, without a graph.

`TorchPasses` are for all layers, devices and types, and the reference of the native ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.passes.links import Hidden, Link, evaluate
from iresflow.lipschitz.passes.pointwise import adjoint, scale_adjoint, scale_tangent
from iresflow.powers import Determinant, KrylovFound, KrylovSpace, PowerSums, Series

__all__ = ["Passes", "Slopes", "TorchPasses"]

Slopes = Sequence[Tensor | None]
"""Of each link's activation, ``(B, ...)``, or None for no activation."""


class Primal(NamedTuple):
    """g(x), and what its derivatives take."""

    value: Tensor
    hidden: Hidden


class Passes(ABC):
    """The passes through one chain. Images have their channels last in memory (`same_layout`)."""

    links: Sequence[Link]
    """First to last, without a graph."""

    @abstractmethod
    def primal(self, x: Tensor) -> Primal:
        """g at points ``(B, *event)``, and what its derivatives take."""

    @abstractmethod
    def vjp(self, slopes: Slopes, u: Tensor) -> Tensor:
        r""":math:`J^\top u` for directions ``(K B, *event)``."""

    @abstractmethod
    def tangents(self, slopes: Slopes, v: Tensor) -> list[Tensor]:
        """v ``(K B, *event)``, and its images after each link, each ``(K B, ...)``."""

    @abstractmethod
    def adjoint(
        self,
        inputs: Sequence[Tensor],
        tangents: Sequence[Tensor],
        after: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor, list[Tensor | None]]:
        r"""The adjoint of the chain's value and of its tangents, in one pass.

        With t the tangent of v, :math:`h_{i+1} = A\phi(h_i) + b` and :math:`t_{i+1} = A
        (\phi'(h_i) t_i)`. From adjoints :math:`\ell = \partial / \partial h` and :math:`\lambda =
        \partial / \partial t` after a linear layer: :math:`\partial / \partial A = \ell\,
        \phi(h)^\top + \lambda\, (\phi'(h) t)^\top`, and :math:`(A^\top \ell, A^\top \lambda)` go
        through the activation as `iresflow.lipschitz.passes.pointwise.adjoint` says.

        Arguments:
            inputs: What enters each link, from `primal`.
            tangents: The tangents there, ``(K B, ...)`` each; none for K = 0.
            after: Adjoints of the value and of its K tangents, ``((1 + K) B, *event)``.
            needed: Whether the gradients of each link's weight, bias and slope are.

        Returns:
            The adjoint of x, and those three gradients of each link.
        """

    @abstractmethod
    def to(self, dtype: torch.dtype) -> "Passes":
        """The passes in another type of float, as far as `vjp` and `tangents` go."""

    def power_sums(self, slopes: Slopes, v: Tensor, series: Series) -> PowerSums | None:
        """`Jacobian.power_sums` in one pass, or None where there is no faster way."""
        return None

    def krylov(self, slopes: Slopes, v: Tensor, space: KrylovSpace) -> KrylovFound | None:
        """`Jacobian.fused_krylov`."""
        return None

    def determinant(self, slopes: Slopes, batch: int) -> Determinant | None:
        """`Jacobian.fused_determinant` of a batch of so many samples."""
        return None

    def columns(self, slopes: Slopes, batch: int) -> Tensor | None:
        """`Jacobian.fused_columns` of a batch of so many samples."""
        return None


@final
class TorchPasses(Passes):
    """The passes by operations of PyTorch.

    Arguments:
        links: First to last.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = [link.detached() for link in links]

    @torch.no_grad()
    def primal(self, x: Tensor) -> Primal:
        hidden = Hidden()
        return Primal(evaluate(self.links, x, hidden), hidden)

    @torch.no_grad()
    def vjp(self, slopes: Slopes, u: Tensor) -> Tensor:
        for link, slope in zip(reversed(self.links), reversed(slopes), strict=True):
            u = same_layout(link.adjoint(u))
            if link.activation is not None and slope is not None:
                u = scale_adjoint(link.activation, u, slope)
        return u

    @torch.no_grad()
    def tangents(self, slopes: Slopes, v: Tensor) -> list[Tensor]:
        tangents = [v]
        for link, slope in zip(self.links, slopes, strict=True):
            t = tangents[-1]
            if link.activation is not None and slope is not None:
                t = scale_tangent(link.activation, t, slope)
            tangents.append(same_layout(link.product(t)))
        return tangents

    @torch.no_grad()
    def adjoint(
        self,
        inputs: Sequence[Tensor],
        tangents: Sequence[Tensor],
        after: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor, list[Tensor | None]]:
        batch = len(inputs[0])
        gradients: list[Tensor | None] = []
        for i in reversed(range(len(self.links))):
            link, h = self.links[i], inputs[i]
            t = tangents[i] if tangents else h[:0]
            before = same_layout(link.adjoint(after))
            if link.activation is None:
                entered, g_beta = torch.cat([h, t]), None
            else:
                entered, before, g_beta = adjoint(link.activation, h, t, before, link.beta)
            weight, bias = needed[3 * i : 3 * i + 2]
            g_weight = link.layer.weight_gradient(entered, after) if weight else None
            g_bias = _sum_to_bias(after[:batch], link.bias) if bias else None
            gradients = [g_weight, g_bias, g_beta, *gradients]
            after = before
        return after[:batch], gradients

    def to(self, dtype: torch.dtype) -> Passes:
        return TorchPasses([link.to(dtype) for link in self.links])


def _sum_to_bias(adjoint: Tensor, bias: Tensor) -> Tensor:
    """The bias' gradient: summed over pixels, and over samples unless each has its own bias."""
    if bias.ndim == 4:
        return adjoint
    pixels = tuple(range(2, adjoint.ndim))
    if bias.ndim == 2:
        return adjoint.sum(pixels) if pixels else adjoint
    return adjoint.sum((0, *pixels))
