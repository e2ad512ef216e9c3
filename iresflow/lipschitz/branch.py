"""The residual branches: chains of activations and norm-bounded linear layers."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from iresflow.errors import UnknownBoundError
from iresflow.linearization import Linearization
from iresflow.lipschitz.bounds.base import Bound, LipschitzMap
from iresflow.lipschitz.bounds.induced import NORMS
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.linear import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.layers.normalization import Normalization
from iresflow.lipschitz.layers.padding import Padding
from iresflow.lipschitz.passes.chain import ChainLinearization, evaluate_chain
from iresflow.lipschitz.passes.native.passes import native_passes
from iresflow.lipschitz.passes.plain import Stage
from iresflow.lipschitz.passes.snapshot import Snapshot

__all__ = ["Branch", "conv_branch", "dense_branch"]


@final
class Branch(nn.Module, LipschitzMap):
    r"""A residual branch :math:`g(x) = A_n \phi(\cdots A_1 \phi(x))` (thesis, eq. 4.5).

    A context shifts the biases of the hidden layers: it moves g without touching its Lipschitz
    constant in x, so the certificate holds for every context.

    Arguments:
        layers: The linear layers, first to last.
        activations: One in front of each layer; None for none.
        context_dim: Dimension of the context, 0 for none.

    Attributes:
        recompute: Whether the backward pass computes hidden tensors anew instead of keeping them.

    Raises:
        ValueError: the two lists differ in length.
    """

    def __init__(
        self,
        layers: Sequence[NormalizedLayer],
        activations: Sequence[Activation | None],
        *,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        if len(layers) != len(activations):
            raise ValueError(
                f"a branch takes one activation (or None) in front of each layer, got "
                f"{len(activations)} for {len(layers)} layers"
            )
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList([a or nn.Identity() for a in activations])
        self.recompute = False
        self.shift: nn.Linear | None = None
        if context_dim:
            self.shift = nn.Linear(context_dim, sum(self._hidden_widths()), bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """g(x): ``(B, *event)`` and an optional ``(B, context_dim)`` to ``(B, *event)``."""
        stages = self._stages(context, x.dtype)
        native = None if torch.is_grad_enabled() else native_passes(stages, x)
        if native is None:
            return evaluate_chain(stages, x)
        value = native.value(x)
        return value.contiguous() if x.is_contiguous() else value

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        """g at x with its derivatives; one normalisation of the weights serves them all.

        In eval mode it knows its certified bound. In training mode, where the weights move in
        every step and the norms are estimates, it knows none.
        """
        lipschitz = None if self.training else self.bound().upper
        stages = self._stages(context, x.dtype)
        return ChainLinearization(stages, x, lipschitz, recompute=self.recompute)

    def snapshot(self, context: Tensor | None = None) -> Snapshot:
        """The branch with its weights normalised once, for many evaluations of one map.

        In training mode with gradients on, that moves the power iteration by one step; the bound
        is that of the weights which act.

        Arguments:
            context: ``(B, context_dim)`` or None.
        """
        stages = self._stages(context)
        return Snapshot(stages, [layer.bound().upper for layer in self.layers], self.bound().upper)

    def bound(self, norm: float = 2.0) -> Bound:
        """The smallest product of the layers' and activations' constants (thesis, eq. 4.6).

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
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            # A bias that is NaN has no norm, and yet the branch maps everything to NaN.
            return Bound(math.inf, math.inf, "not finite")
        paths = {norm: Bound(1.0, 1.0, "")}
        for activation, layer in zip(self.activations, self.layers, strict=True):
            steps = layer.bounds()
            for p in paths if isinstance(activation, Activation) else ():
                constant = activation.lipschitz_in(p)
                paths[p] = paths[p].then(Bound(constant, constant, ""))
            paths = {
                q: min((path.then(steps[p, q]) for p, path in paths.items()), key=_upper)
                for q in NORMS
            }
        return paths[norm]

    def enforce(self) -> None:
        """Makes each layer's certified bound at most its coefficient. Errors: as `bound`."""
        self._require_bounds()
        for layer in self.layers:
            layer.enforce()

    def _require_bounds(self) -> None:
        for i, (activation, layer) in enumerate(zip(self.activations, self.layers, strict=True)):
            pointwise = isinstance(activation, Activation) and hasattr(activation, "lipschitz")
            if not (pointwise or type(activation) is nn.Identity):
                raise UnknownBoundError(f"activations.{i}", type(activation).__name__)
            if not isinstance(layer, LipschitzMap):
                raise UnknownBoundError(f"layers.{i}", type(layer).__name__)

    def _hidden_widths(self) -> list[int]:
        return [layer.bias.numel() for layer in self.layers][:-1]

    def _stages(self, context: Tensor | None, dtype: torch.dtype | None = None) -> list[Stage]:
        self._require_bounds()  # also in training: an unknown module would not be applied
        shifts: list[Tensor] = []
        if self.shift is not None and context is not None:
            shifts = list(self.shift(context).split(self._hidden_widths(), dim=1))
        stages = []
        for i, (module, layer) in enumerate(zip(self.activations, self.layers, strict=True)):
            activation = module if isinstance(module, Activation) else None
            beta = None if activation is None else activation.beta()
            bias = layer.bias + shifts[i] if i < len(shifts) else layer.bias
            weight = layer.normalized_weight()
            if dtype is not None:
                # Points of a wider type are computed in it: the same map, rounded less.
                weight = weight.to(torch.promote_types(dtype, weight.dtype))
            stages.append(Stage(activation, layer, weight, bias, beta))
        return stages


def _upper(bound: Bound) -> float:
    return bound.upper


def conv_branch(
    channels: int,
    hidden: int,
    image_size: tuple[int, int],
    *,
    activation: type[Activation],
    coeff: float,
    normalization: Normalization | None = None,
    padding: Padding | None = None,
    activate_input: bool = True,
    context_dim: int = 0,
) -> Branch:
    """A branch of 3 x 3, 1 x 1 and 3 x 3 convolutions (thesis, appendix A.2).

    Arguments:
        channels: Of the image that comes in and goes out.
        hidden: Channels between the convolutions.
        image_size: Height and width in pixels.
        activation: The class of the activations.
        coeff: Upper limit of each layer's operator norm.
        normalization: What training divides the weights by; `Bidiagonalization` by default.
        padding: What the 3 x 3 convolutions read beyond the border; `ZeroPadding` by default.
        activate_input: Whether an activation stands before the first layer, as in all blocks but
            the first of a model.
        context_dim: Dimension of the context, 0 for none.
    """
    limits = {"coeff": coeff, "normalization": normalization}
    wide = activation.width * hidden
    first = activation() if activate_input else None
    inputs = activation.width * channels if activate_input else channels
    layers = [
        NormalizedConv2d(inputs, hidden, 3, image_size, padding=padding, **limits),
        NormalizedConv2d(wide, hidden, 1, image_size, **limits),
        NormalizedConv2d(wide, channels, 3, image_size, padding=padding, **limits),
    ]
    return Branch(layers, [first, activation(), activation()], context_dim=context_dim)


def dense_branch(
    dim: int,
    hidden: int,
    *,
    activation: type[Activation],
    coeff: float,
    normalization: Normalization | None = None,
    activate_input: bool = True,
    context_dim: int = 0,
) -> Branch:
    """A branch of three dense layers on vectors ``(B, dim)``; arguments as in `conv_branch`."""
    limits = {"coeff": coeff, "normalization": normalization}
    wide = activation.width * hidden
    first = activation() if activate_input else None
    layers = [
        NormalizedDense(activation.width * dim if activate_input else dim, hidden, **limits),
        NormalizedDense(wide, hidden, **limits),
        NormalizedDense(wide, dim, **limits),
    ]
    return Branch(layers, [first, activation(), activation()], context_dim=context_dim)
