"""The residual branches: chains of activations and norm-bounded linear layers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast, final

import torch
from torch import Tensor, nn

from iresflow.errors import UnknownBoundError
from iresflow.linearization import Linearization
from iresflow.lipschitz.bounds.base import Bound, LipschitzMap
from iresflow.lipschitz.bounds.induced import NORMS
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.image_context import ImageShift
from iresflow.lipschitz.layers.linear import NormalizedConv2d
from iresflow.lipschitz.layers.operator import broadcast_bias
from iresflow.lipschitz.layers.transposed import Transposed
from iresflow.lipschitz.layers.watch import version
from iresflow.lipschitz.passes.chain import Chain
from iresflow.lipschitz.passes.links import Link
from iresflow.lipschitz.passes.rounding import RoundedChain
from iresflow.tensors import linear, transformed, widest

__all__ = ["Branch", "ContextDim"]


ContextDim = int | tuple[int, int, int]
"""Dimension of a context that is a vector, 0 for none; or (C, H, W) of one that is an image."""


Layer = NormalizedLayer | Transposed


@final
class Branch(nn.Module, LipschitzMap):
    r"""A residual branch :math:`g(x) = A_n \phi(\cdots A_1 \phi(x))` (thesis, eq. 4.5).

    A context shifts the biases of the hidden layers: it moves g without touching its Lipschitz
    constant in x, so the certificate holds for every context.

    Arguments:
        layers: The linear layers, first to last.
        activations: One in front of each layer; None for none.
        context_dim: Dimension of the context, or (C, H, W) where it is an image, which shifts each
            pixel of the hidden layers; 0 for none.

    Attributes:
        recompute: Whether the backward pass computes hidden tensors anew instead of keeping them.

    Raises:
        ValueError: the two lists differ in length, or there is no hidden layer for the context.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        activations: Sequence[Activation | None],
        *,
        context_dim: ContextDim = 0,
    ) -> None:
        super().__init__()
        if len(layers) != len(activations):
            raise ValueError(
                f"a branch takes one activation (or None) in front of each layer, got "
                f"{len(activations)} for {len(layers)} layers"
            )
        if context_dim and len(layers) < 2:
            raise ValueError("a context enters the hidden layers, and a branch of one has none")
        self.layers = cast(Sequence[Layer], nn.ModuleList(layers))
        self.activations = nn.ModuleList([a or nn.Identity() for a in activations])
        self.recompute = False
        self._finite: list[tuple[int, int] | None] | None = None  # as of which writes
        self.shift: nn.Linear | ImageShift | None = None
        if isinstance(context_dim, int):
            if context_dim:
                self.shift = nn.Linear(context_dim, sum(self._hidden_widths()), bias=False)
        else:
            first = layers[0]
            assert isinstance(first, NormalizedConv2d)
            size = first.image_size
            self.shift = ImageShift(context_dim, size, sum(self._hidden_widths()))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """g(x): ``(B, *event)`` and an optional context, ``(B, context_dim)`` or ``(B, C, H, W)``,
        to ``(B, *event)``."""
        return self.chain(context, x.dtype).value(x)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        """g at x with its derivatives; one normalisation of the weights serves them all.

        In eval mode it knows its certified bound. In training mode, where the weights move in
        every step and the norms are estimates, it knows none; nor inside of ``torch.func``.
        """
        chain = self.chain(context, x.dtype)
        if self.training or transformed():
            return chain.linearize(x)
        return self._certified(chain).linearize(x)

    def chain(self, context: Tensor | None = None, dtype: torch.dtype | None = None) -> Chain:
        """The branch with its weights normalised once, for whatever is asked of one map.

        In training mode with gradients on, that moves the estimates of the norms by a step.

        Arguments:
            context: ``(B, context_dim)``, ``(B, C, H, W)`` or None.
            dtype: Of the points. Weights of a narrower type are widened: the same map, rounded
                less.
        """
        self._require_bounds()  # also in training: an unknown module would not be applied
        shifts = self._shifts(context)
        links: list[Link] = []
        for i, (module, layer) in enumerate(zip(self.activations, self.layers, strict=True)):
            activation = module if isinstance(module, Activation) else None
            beta = None if activation is None else activation.beta()
            bias: Tensor = layer.bias
            if i < len(shifts):
                bias = shifts[i] + broadcast_bias(bias, shifts[i].ndim)
            if isinstance(layer, Transposed):
                family, weight = layer.family, layer.transpose(links[-1].weight)
            else:
                family, weight = layer, layer.normalize()
            if dtype is not None:
                weight = weight.to(torch.promote_types(dtype, weight.dtype))
            links.append(Link(activation, family, weight, bias, beta))
        return Chain(tuple(links), recompute=self.recompute, symmetric=self.symmetric)

    def contraction(self, context: Tensor | None = None) -> tuple[Chain, list[RoundedChain]]:
        """The branch for an inverse: with its certified bound, in training mode too.

        Returns:
            The chain, and it in the type of its weights and in the widest one.
        """
        chain = self._certified(self.chain(context))
        norms = [layer.bound().upper for layer in self.layers]
        weight = chain.links[0].weight
        dtypes = dict.fromkeys((weight.dtype, widest(weight.device)))
        return chain, [RoundedChain(chain, norms, dtype) for dtype in dtypes]

    def _shifts(self, context: Tensor | None) -> Sequence[Tensor]:
        """What the context adds to the biases of the hidden layers, of the first ones first."""
        if self.shift is None or context is None:
            return ()
        if isinstance(self.shift, ImageShift):
            shifts = self.shift(context)
        else:
            shifts = linear(context, self.shift.weight)
        return shifts.split(self._hidden_widths(), dim=1)

    def _certified(self, chain: Chain) -> Chain:
        return replace(chain, lipschitz=self.bound().upper)

    def bound(self, norm: float = 2.0) -> Bound:
        """The smallest product of the links' constants (thesis, eq. 4.6).

        Each layer may map from one p-norm to another. Over all choices of the norms in between,
        the smallest product is that of a shortest path.

        Arguments:
            norm: The p-norm of the branch's domain and range: 1, 2 or infinity.

        Raises:
            UnknownBoundError: of a layer or an activation no bound is known.
            ValueError: another norm.
        """
        self._require_bounds()
        if norm not in NORMS:
            raise ValueError(f"norm must be 1, 2 or infinity, got {norm}")
        if not self._is_finite():
            # A bias that is NaN has no norm, and yet the branch maps everything to NaN.
            return Bound(math.inf, math.inf, "not finite")
        paths = {norm: Bound(1.0, 1.0, "")}
        for activation, layer in zip(self.activations, self.layers, strict=True):
            pointwise = activation if isinstance(activation, Activation) else None
            steps = layer.bounds_after(pointwise)
            paths = {
                q: min((path.then(steps[p, q]) for p, path in paths.items()), key=_upper)
                for q in NORMS
            }
        return paths[norm]

    def enforce(self) -> None:
        """Makes each layer's certified bound at most its coefficient. Errors: as `bound`."""
        self._require_bounds()
        for layer in self._weighted():
            layer.enforce()

    def vanish(self) -> None:
        """Sets the last weight to 0, so that the branch is no more than its bias."""
        nn.init.zeros_(self._weighted()[-1].weight)

    def sharpen(self) -> None:
        """Lets the estimates of all norms settle, for the training steps that follow."""
        for layer in self._weighted():
            layer.sharpen()

    def look_again(self) -> None:
        """Makes the next bound look at all parameters, also at those written through ``.data``."""
        self._finite = None

    @property
    def symmetric(self) -> bool:
        """Whether the Jacobian is symmetric at every point, see `Transposed`."""
        return isinstance(self.layers[-1], Transposed)

    def _weighted(self) -> list[NormalizedLayer]:
        """The layers with weights of their own."""
        return [layer for layer in self.layers if not isinstance(layer, Transposed)]

    def _is_finite(self) -> bool:
        """Read from a GPU, for which the host waits, only where a parameter was written to."""
        parameters = list(self.parameters())
        written = [version(p) for p in parameters]
        if written == self._finite:
            return True
        finite = bool(torch.stack([torch.isfinite(p).all() for p in parameters]).all())
        known = finite and None not in written and parameters[0].device.type != "cpu"
        self._finite = written if known else None
        return finite

    def _require_bounds(self) -> None:
        for i, (activation, layer) in enumerate(zip(self.activations, self.layers, strict=True)):
            pointwise = isinstance(activation, Activation) and hasattr(activation, "lipschitz")
            if not (pointwise or type(activation) is nn.Identity):
                raise UnknownBoundError(f"activations.{i}", type(activation).__name__)
            if not isinstance(layer, LipschitzMap):
                raise UnknownBoundError(f"layers.{i}", type(layer).__name__)

    def _hidden_widths(self) -> list[int]:
        return [layer.bias.numel() for layer in self.layers][:-1]


def _upper(bound: Bound) -> float:
    return bound.upper
