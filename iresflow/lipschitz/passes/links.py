r"""A branch as a chain of links, and how it is computed by PyTorch's operations: the reference.

For :math:`g = A_n \phi_{n-1} (\cdots A_1 \phi_0(x))`, link i is the activation :math:`\phi_i` (or
none) and the linear layer :math:`A_{i+1}` after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.layers.operator import Operator, broadcast_bias
from iresflow.lipschitz.passes.pointwise import activate

__all__ = ["Hidden", "Link", "evaluate"]


@final
@dataclass(frozen=True, eq=False)
class Link:
    """An activation (or none), then a linear layer, with their values now.

    Attributes:
        weight: The normalised weight.
        bias: ``(C,)``; where a context shifts each sample's, ``(B, C)``, and where one shifts each
            pixel's, ``(B, C, H, W)``.
        beta: The activation's trainable slope, or None.
    """

    activation: Activation | None
    layer: NormalizedLayer
    weight: Tensor
    bias: Tensor
    beta: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the link's value depends on beside its input."""
        return self.weight, self.bias, self.beta

    @property
    def width(self) -> int:
        """Values that enter the layer for each entry of the link's input."""
        return 1 if self.activation is None else self.activation.width

    @cached_property
    def affine(self) -> Operator:
        """The linear layer with its bias."""
        bias = self.bias.to(self.weight.dtype)  # of a weight that was widened
        if bias.ndim == 1:
            return self.layer.operator(self.weight, bias)
        product = self.product
        return lambda x: product(x) + broadcast_bias(bias, x.ndim)

    @cached_property
    def product(self) -> Operator:
        """The linear layer alone."""
        return self.layer.operator(self.weight)

    @cached_property
    def adjoint(self) -> Operator:
        """The adjoint of the linear layer."""
        return self.layer.adjoint(self.weight)

    def detached(self) -> "Link":
        """Without a graph."""
        weight, bias = self.weight.detach(), self.bias.detach()
        beta = None if self.beta is None else self.beta.detach()
        return replace(self, weight=weight, bias=bias.to(weight.dtype), beta=beta)

    def to(self, dtype: torch.dtype) -> "Link":
        """In another type of float, copied: an optimiser may change the parameters meanwhile."""
        return replace(self, weight=self.weight.to(dtype), bias=self.bias.to(dtype, copy=True))

    def rows(self, index: Tensor) -> "Link":
        """For some samples ``(N,)`` of the batch only."""
        return self if self.bias.ndim == 1 else replace(self, bias=self.bias[index])


@final
@dataclass(frozen=True, eq=False)
class Hidden:
    r"""What enters each link, :math:`h_i`, and the slopes there, None for no activation.

    It is all that products with the Jacobian take: :math:`J = A_n D_{n-1} \cdots A_1 D_0` with
    :math:`D_i = \operatorname{diag} \phi_i'(h_i)`.
    """

    inputs: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor | None] = field(default_factory=list)


def evaluate(links: Sequence[Link], x: Tensor, hidden: Hidden | None = None) -> Tensor:
    """g(x): ``(B, *event)`` to the same.

    Arguments:
        links: First to last.
        x: Points.
        hidden: Takes what lies between. Without it, autograd records all operations.
    """
    order = 0 if hidden is None else 1
    for link in links:
        slope: list[Tensor] = []
        if hidden is not None:
            x = same_layout(x)
            hidden.inputs.append(x)
        if link.activation is not None:
            x, *slope = activate(link.activation, x, link.beta, order)
        if hidden is not None:
            hidden.slopes.append(slope[0] if slope else None)
        x = link.affine(x)
    return x if hidden is None else same_layout(x)
