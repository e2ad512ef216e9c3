"""The residual branches: chains of activations and norm-bounded linear layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from iresflow.lipschitz.layers.watch import version
from iresflow.lipschitz.passes.chain import Chain
from iresflow.lipschitz.passes.links import Link
from iresflow.lipschitz.passes.rounding import RoundedChain
from iresflow.tensors import linear, transformed, widest

__all__ = ["Branch", "conv_branch", "dense_branch", "hidden_widths"]


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
        ValueError: the two lists differ in length, or there is no hidden layer for the context.
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
        if context_dim and len(layers) < 2:
            raise ValueError("a context enters the hidden layers, and a branch of one has none")
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList([a or nn.Identity() for a in activations])
        self.recompute = False
        self._finite: list[tuple[int, int] | None] | None = None  # as of which writes
        self.shift: nn.Linear | None = None
        if context_dim:
            self.shift = nn.Linear(context_dim, sum(self._hidden_widths()), bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """g(x): ``(B, *event)`` and an optional ``(B, context_dim)`` to ``(B, *event)``."""
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
            context: ``(B, context_dim)`` or None.
            dtype: Of the points. Weights of a narrower type are widened: the same map, rounded
                less.
        """
        self._require_bounds()  # also in training: an unknown module would not be applied
        shifts: list[Tensor] = []
        if self.shift is not None and context is not None:
            shifts = list(linear(context, self.shift.weight).split(self._hidden_widths(), dim=1))
        links = []
        for i, (module, layer) in enumerate(zip(self.activations, self.layers, strict=True)):
            activation = module if isinstance(module, Activation) else None
            beta = None if activation is None else activation.beta()
            bias = layer.bias + shifts[i] if i < len(shifts) else layer.bias
            weight = layer.normalize()
            if dtype is not None:
                weight = weight.to(torch.promote_types(dtype, weight.dtype))
            links.append(Link(activation, layer, weight, bias, beta))
        return Chain(tuple(links), recompute=self.recompute)

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

    def _certified(self, chain: Chain) -> Chain:
        return replace(chain, lipschitz=self.bound().upper)

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
        if not self._is_finite():
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

    def look_again(self) -> None:
        """Makes the next bound look at all parameters, also at those written through ``.data``."""
        self._finite = None

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


def conv_branch(
    channels: int,
    hidden: int | Sequence[int],
    image_size: tuple[int, int],
    *,
    activation: type[Activation],
    coeff: float,
    kernels: Sequence[int] = (3, 1, 3),
    normalization: Normalization | None = None,
    padding: Padding | None = None,
    activate_input: bool = True,
    context_dim: int = 0,
    outputs: int | None = None,
) -> Branch:
    """A branch of convolutions, by default 3 x 3, 1 x 1 and 3 x 3 (thesis, appendix A.2).

    Arguments:
        channels: Of the image that comes in.
        hidden: Channels between the convolutions: one number for all, or one for each gap.
        image_size: Height and width in pixels.
        activation: The class of the activations.
        coeff: Upper limit of each layer's operator norm.
        kernels: Side of each convolution's kernel in pixels, odd.
        normalization: What training divides the weights by; `Bidiagonalization` by default.
        padding: What the convolutions read beyond the border; `ZeroPadding` by default.
        activate_input: Whether an activation stands before the first layer, as in all blocks but
            the first of a model.
        context_dim: Dimension of the context, 0 for none.
        outputs: Channels of the image that goes out; None for those that come in.

    Raises:
        ValueError: no kernel, an even one, or another number of widths than of gaps.
    """

    def layer(inputs: int, outgoing: int, depth: int) -> NormalizedConv2d:
        return NormalizedConv2d(
            inputs,
            outgoing,
            kernels[depth],
            image_size,
            padding=padding,
            coeff=coeff,
            normalization=normalization,
        )

    widths = hidden_widths(hidden, len(kernels))
    ends = (channels, outputs or channels)
    return _branch(layer, ends, widths, activation, activate_input, context_dim)


def dense_branch(
    dim: int,
    hidden: int | Sequence[int],
    *,
    activation: type[Activation],
    coeff: float,
    normalization: Normalization | None = None,
    activate_input: bool = True,
    context_dim: int = 0,
) -> Branch:
    """A branch of dense layers on vectors ``(B, dim)``.

    Arguments:
        hidden: Units between the layers: one number for each gap, or one for the two gaps of
            three layers. The others are those of `conv_branch`.
    """

    def layer(inputs: int, outputs: int, depth: int) -> NormalizedDense:
        return NormalizedDense(inputs, outputs, coeff=coeff, normalization=normalization)

    layers = 3 if isinstance(hidden, int) else len(hidden) + 1
    widths = hidden_widths(hidden, layers)
    return _branch(layer, (dim, dim), widths, activation, activate_input, context_dim)


def hidden_widths(hidden: int | Sequence[int], layers: int) -> list[int]:
    """The widths between so many layers: a number for each gap, or one for all.

    Raises:
        ValueError: no layer, another number of widths than of gaps, or one that is not positive.
    """
    widths = [hidden] * (layers - 1) if isinstance(hidden, int) else list(hidden)
    if layers < 1:
        raise ValueError("a branch takes at least one layer, got none")
    if len(widths) != layers - 1 or not all(width > 0 for width in widths):
        raise ValueError(
            f"a branch of {layers} layers takes {layers - 1} positive widths between them, or one "
            f"for all, got {hidden}"
        )
    return widths


def _branch(
    layer: Callable[[int, int, int], NormalizedLayer],
    ends: tuple[int, int],
    widths: Sequence[int],
    activation: type[Activation],
    activate_input: bool,
    context_dim: int,
) -> Branch:
    """A branch of layers, each made from its inputs, its outputs and its depth."""
    outputs = [*widths, ends[1]]
    inputs = [activation.width * n for n in (ends[0], *widths)]
    if not activate_input:
        inputs[0] = ends[0]
    layers = [
        layer(*sizes, depth) for depth, sizes in enumerate(zip(inputs, outputs, strict=True))
    ]
    activations = [activation() for _ in layers]
    first = activations if activate_input else [None, *activations[1:]]
    return Branch(layers, first, context_dim=context_dim)
