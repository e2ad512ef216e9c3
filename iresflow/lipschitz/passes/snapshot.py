r"""A branch with its weights normalised once, for an inverse: every evaluation is of one map.

The map is defined in real arithmetic: by the normalised weights as they are stored, in float32 or
float64. Evaluated in a wider type, the same numbers are only rounded less.

**Rounding.** An inner product of k terms in floating-point arithmetic, whatever the order of its
sums, is off by at most :math:`k\,\epsilon \sum |a_i b_i|` with :math:`\epsilon` twice the unit
roundoff (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1), so a linear
layer's result :math:`Aa` is off by at most :math:`k\,\epsilon\, \||A|\| |a|`. The norm of the
matrix :math:`|A|` of absolute values is at most the square root of its largest row sum times its
largest column sum; in the matrix of a convolution each tap occurs at most once a row and column,
or so often as a reflection repeats a pixel, the square of the layer's amplification. An activation
with constant 1 has :math:`|\phi(h)| \le |h| + \sqrt n` and is computed to a few eps of that. Each
stage passes on the error that came in times its own Lipschitz constant. All of these sizes are
bounded in advance by :math:`\alpha |x| + \gamma` with constants of the weights, so a bound costs
the norm of x, and no look at what lies between.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.lipschitz.layers.activations import LipSwish
from iresflow.lipschitz.layers.base import broadcast_bias
from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.layers.linear import NormalizedConv2d
from iresflow.lipschitz.passes.chain import ChainLinearization
from iresflow.lipschitz.passes.native.passes import NativePasses, native_passes
from iresflow.lipschitz.passes.plain import Stage
from iresflow.tensors import norm_per_sample

__all__ = ["Snapshot"]

ACTIVATION_ROUNDING = 8.0
"""Error of a computed activation, in units of eps (|h| + sqrt n): a sigmoid or exponential to a
few units in the last place, and the rounding of its argument."""

CACHED = {torch.float64: 2**20}
"""Bytes of one hidden tensor beyond which a batch is evaluated in pieces, which then stay in a
CPU's cache; `CACHED_ELSE` in other types, whose convolutions have more to do at each start."""

CACHED_ELSE = 2**22


@final
class Snapshot:
    """A chain of stages with fixed weights.

    Arguments:
        stages: The links, first to last; their tensors may be attached to a graph.
        norms: Certified bounds of the layers' operator norms with these weights.
        lipschitz: A certified bound of the chain's Lipschitz constant.
    """

    def __init__(self, stages: Sequence[Stage], norms: Sequence[float], lipschitz: float) -> None:
        self.lipschitz = lipschitz
        self._stages = tuple(stages)
        self._norms = tuple(norms)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self._stages[0].weight.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether any of the weights is attached to a graph."""
        tensors = [t for s in self._stages for t in (s.weight, s.bias, s.beta)]
        return any(t is not None and t.requires_grad for t in tensors)

    def linearize(self, x: Tensor, index: Tensor | None = None) -> Linearization:
        """The chain at points, attached to the graph of its weights.

        Arguments:
            x: ``(B, *event)``, or ``(N, *event)`` for some samples of the batch.
            index: The indices ``(N,)`` of these samples; None for all.
        """
        stages = self._stages
        if index is not None:
            stages = tuple(_rows(stage, index) for stage in stages)
        return ChainLinearization(stages, x, self.lipschitz)

    @torch.no_grad()
    def evaluator(self, dtype: torch.dtype) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """g without a graph, for many calls.

        Arguments:
            dtype: What to compute in; at least as wide as the weights.

        Returns:
            A function of points ``(N, *event)`` and of the indices ``(N,)`` of their samples in
            the batch, which pick their rows of the context. It gives g and, ``(N,)``, an upper
            bound of the norm of its rounding error in units of eps.
        """
        return _Evaluator(self._stages, self._norms, dtype)


@final
class _Evaluator:
    """What `Snapshot.evaluator` returns; arguments as there and of `Snapshot`."""

    def __init__(
        self, stages: Sequence[Stage], norms: Sequence[float], dtype: torch.dtype
    ) -> None:
        self._stages = [_in_type(stage, dtype) for stage in stages]
        self._dtype = dtype
        factors = [_factors(stage) for stage in stages]
        behind = [before for before, _ in factors[1:]] + [1.0]
        self._first = factors[0][0]
        self._links = [
            _Link(stage, norm, dtype, own, then)
            for stage, norm, own, then in zip(stages, norms, factors, behind, strict=True)
        ]
        # By the shape of an event.
        self._sizes: dict[torch.Size, _Sizes] = {}
        self._native: dict[torch.Size, NativePasses | None] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        event = x.shape[1:]
        if event not in self._sizes:
            self._sizes[event] = self._measured(event)
            self._native[event] = native_passes(self._stages, x)
        rounding = self._sizes[event].rounding(norm_per_sample(x), index)
        native = self._native[event]
        if native is not None:
            return native.value(x, index), rounding
        count = _pieces(self._links, x)
        if count == 1:
            return self._through(x, index), rounding
        parts = zip(x.chunk(count), index.chunk(count), strict=True)
        return torch.cat([self._through(*part) for part in parts]), rounding

    def _through(self, x: Tensor, index: Tensor) -> Tensor:
        x = same_layout(x) if self._dtype == torch.float32 else x
        x = x if self._first == 1 else x * self._first
        for link in self._links:
            x = link(x, index)
        return x

    def _measured(self, event: torch.Size) -> "_Sizes":
        """Behind all links; none of them changes the size of an image."""
        pixels = math.prod(event[1:])
        sizes, channels = _Sizes(), event[0]
        for link in self._links:
            sizes = link.pass_on(sizes, channels * pixels, pixels)
            sizes = sizes.as_computed(torch.finfo(self._dtype).eps)
            channels = len(link.weight)
        return sizes


@final
class _Link:
    """A stage in one type of float, with what it does to sizes and rounding errors.

    Arguments:
        stage: Of the snapshot.
        norm: Certified bound of the layer's operator norm.
        dtype: The type.
        factors: Of this stage, as `_factors` gives them: its input comes multiplied by the first.
        then: What its output is to be multiplied by.
    """

    def __init__(
        self,
        stage: Stage,
        norm: float,
        dtype: torch.dtype,
        factors: tuple[float, float],
        then: float,
    ) -> None:
        weight, bias = stage.weight.to(dtype), stage.bias.detach()
        self._layer = stage.layer
        self._activation = stage.activation
        self._folded = factors != (1.0, 1.0)
        self.weight = weight * (factors[1] * then) if self._folded or then != 1 else weight
        self._bias = bias.to(dtype) * then
        self._norm = norm
        self._gain = norm * (1.0 if stage.activation is None else stage.activation.lipschitz)
        self._factor = ACTIVATION_ROUNDING * norm
        self._factor += _product_rounding(weight) * stage.layer.amplification
        # A number, or one for each sample where a context shifts the bias.
        wide = bias.double()
        self._shift = norm_per_sample(wide).to(dtype) if bias.ndim == 2 else float(wide.norm())

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        if self._folded:
            x = F.silu(x)
        elif self._activation is not None:
            x = self._activation(x)
        layer, bias = self._layer, self._bias
        if isinstance(layer, NormalizedConv2d) and bias.ndim == 1:
            return layer.padding.convolve(x, self.weight, layer.stride, bias)
        bias = bias if bias.ndim == 1 else bias[index]
        return layer.multiply(x, self.weight).add_(broadcast_bias(bias, x.ndim))

    def pass_on(self, sizes: "_Sizes", entries: int, pixels: int) -> "_Sizes":
        """The sizes behind the link, for so many entries of its input and pixels of its output."""
        entering = sizes.offset + math.sqrt(entries)
        slope = self._norm * sizes.slope
        offset = self._norm * entering + math.sqrt(pixels) * self._shift
        return _Sizes(
            slope,
            offset,
            self._gain * sizes.rounding_slope + self._factor * sizes.slope + slope,
            self._gain * sizes.rounding_offset + self._factor * entering + offset,
        )


@final
@dataclass(frozen=True)
class _Sizes:
    """Bounds ``slope * |x| + offset`` of a link's input, and of its rounding in units of eps.

    Offsets are numbers, or ``(B,)`` where a context shifts each sample's biases.
    """

    slope: float = 1.0
    offset: Tensor | float = 0.0
    rounding_slope: float = 0.0
    rounding_offset: Tensor | float = 0.0

    def as_computed(self, eps: float) -> "_Sizes":
        """With the rounding counted into the size."""
        slope = self.slope + eps * self.rounding_slope
        return replace(self, slope=slope, offset=self.offset + eps * self.rounding_offset)

    def rounding(self, size: Tensor, index: Tensor) -> Tensor:
        """The bound ``(N,)`` for points of a size, of samples with these indices."""
        offset = self.rounding_offset
        if isinstance(offset, Tensor):
            offset = offset[index]
        return self.rounding_slope * size + offset


def _factors(stage: Stage) -> tuple[float, float]:
    r"""Factors a and b with :math:`\phi(h) = b \operatorname{silu}(a h)`; both 1 where none are.

    The neighbouring weights take them in, so that the activation is one pass over memory.
    """
    if not isinstance(stage.activation, LipSwish) or stage.beta is None:
        return 1.0, 1.0
    beta = float(stage.beta)
    return (beta, 1 / (1.1 * beta)) if 1e-3 < beta < 1e3 else (1.0, 1.0)


def _pieces(links: Sequence[_Link], x: Tensor) -> int:
    """In how many pieces a batch is evaluated: on a CPU, such as fit into its cache."""
    if x.device.type != "cpu":
        return 1
    widest = max(link.weight.shape[0] for link in links)
    size = len(x) * widest * math.prod(x.shape[2:]) * x.element_size()
    return max(1, math.ceil(size / CACHED.get(x.dtype, CACHED_ELSE)))


def _product_rounding(weight: Tensor) -> float:
    """k times the bound of the norm of the absolute values' matrix."""
    sizes = weight.detach().abs()
    row = float(sizes.flatten(1).sum(1).max())
    column = float(sizes.transpose(0, 1).flatten(1).sum(1).max())
    # One for the bias, two for the factors that the weight has taken in.
    return (weight[0].numel() + 3) * math.sqrt(row * column)


def _in_type(stage: Stage, dtype: torch.dtype) -> Stage:
    # Copied: an optimiser may change the parameter while the snapshot lives.
    return replace(stage, weight=stage.weight.to(dtype), bias=stage.bias.to(dtype, copy=True))


def _rows(stage: Stage, index: Tensor) -> Stage:
    """The stage for some samples of the batch only."""
    return stage if stage.bias.ndim == 1 else replace(stage, bias=stage.bias[index])
