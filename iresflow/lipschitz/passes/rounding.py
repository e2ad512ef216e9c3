r"""A chain for an inverse: g in one type of float, with a bound of its rounding.

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
link passes on the error that came in times its own Lipschitz constant. All of these sizes are
bounded in advance by :math:`\alpha |x| + \gamma` with constants of the weights, so a bound costs
the norm of x, and no look at what lies between.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from iresflow.linearization import Jacobian
from iresflow.lipschitz.passes.chain import Chain, ChainLinearization
from iresflow.lipschitz.passes.choice import native_passes, native_solution
from iresflow.lipschitz.passes.links import Link, evaluate
from iresflow.solution import MixedIteration, Solution
from iresflow.tensors import norm_per_sample, widest

if TYPE_CHECKING:  # the folder may be missing
    from iresflow.lipschitz.passes.native.passes import NativePasses

__all__ = ["RoundedChain", "fused_solve"]

ACTIVATION_ROUNDING = 8.0
"""Error of a computed activation, in units of eps (|h| + sqrt n): a sigmoid or exponential to a
few units in the last place, and the rounding of its argument."""


@final
class RoundedChain:
    """g without a graph, for many calls; what `iresflow.solvers.solve` takes.

    Arguments:
        chain: The chain.
        norms: Certified bounds of the layers' operator norms with these weights.
        dtype: What to compute in; at least as wide as the weights.
    """

    def __init__(self, chain: Chain, norms: Sequence[float], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._chain = chain
        self._links = [link.detached().to(dtype) for link in chain.links]
        self._norms = tuple(norms)
        # By the shape of an event.
        self._sizes: dict[torch.Size, _Sizes] = {}
        self._native: dict[torch.Size, NativePasses | None] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """g at points, and the bound of its rounding.

        Arguments:
            x: ``(N, *event)``.
            index: The indices ``(N,)`` of their samples in the batch, which pick their rows of
                the context.

        Returns:
            g ``(N, *event)``, and upper bounds ``(N,)`` of the norms of its rounding errors in
            units of eps.
        """
        sizes, native = self._ready(x)
        rounding = sizes.rounding(norm_per_sample(x), index)
        if native is not None:
            return native.value(x, index), rounding
        return evaluate([link.rows(index) for link in self._links], x), rounding

    def _ready(self, x: Tensor) -> "tuple[_Sizes, NativePasses | None]":
        """What evaluates points like x, computed once."""
        event = x.shape[1:]
        if event not in self._sizes:
            self._sizes[event] = self._measured(event)
            self._native[event] = native_passes(self._links, x)
        return self._sizes[event], self._native[event]

    def negated(self) -> "RoundedChain":
        """Minus g."""
        return RoundedChain(self._chain.negated(), self._norms, self.dtype)

    def jacobian(self, x: Tensor, index: Tensor) -> Jacobian:
        """Products with the Jacobians at points, as for a call, in the type of the weights."""
        return ChainLinearization(self._chain.rows(index), x)

    def _measured(self, event: torch.Size) -> "_Sizes":
        """After all links; none of them changes the size of an image."""
        pixels = math.prod(event[1:])
        sizes, channels = _Sizes(), event[0]
        measured = zip(self._links, self._norms, _link_sums(self._links), strict=True)
        for link, norm, sums in measured:
            sizes = sizes.after(link, sums, norm, channels * pixels, pixels)
            sizes = sizes.as_computed(torch.finfo(self.dtype).eps)
            channels = len(link.weight)
        return sizes


@torch.no_grad()
def fused_solve(
    maps: Sequence[RoundedChain], y: Tensor, iteration: MixedIteration
) -> Solution | None:
    """The inverse of a chain in one pass, where there is one; arguments as of `solve`."""
    ready = [part._ready(y.to(part.dtype)) for part in maps]
    passes = [native for _, native in ready if native is not None]
    if len(passes) < len(maps):
        return None
    roundings = [(sizes.rounding_slope, sizes.rounding_offset) for sizes, _ in ready]
    return native_solution(passes, roundings, y, iteration)


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

    def after(
        self, link: Link, sums: "_LinkSums", norm: float, entries: int, pixels: int
    ) -> "_Sizes":
        """The sizes after a link, for so many entries of its input and pixels of its output."""
        gain = norm * (1.0 if link.activation is None else link.activation.lipschitz)
        factor = ACTIVATION_ROUNDING * norm
        # The terms of an inner product, and one more for the bias.
        terms = link.weight[0].numel() + 1
        factor += terms * math.sqrt(sums.row * sums.column) * link.layer.amplification
        entering = self.offset + math.sqrt(entries)
        slope = norm * self.slope
        offset = norm * entering + (1.0 if link.bias.ndim == 4 else math.sqrt(pixels)) * sums.bias
        return _Sizes(
            slope,
            offset,
            gain * self.rounding_slope + factor * self.slope + slope,
            gain * self.rounding_offset + factor * entering + offset,
        )

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


@final
@dataclass(frozen=True)
class _LinkSums:
    """Of a link: the largest sums of the magnitudes in a row and in a column of its matrix, and
    the norm of its bias, ``(B,)`` where a context shifts that for each sample; over all pixels
    where it shifts each of them."""

    row: float
    column: float
    bias: Tensor | float


def _link_sums(links: Sequence[Link]) -> list[_LinkSums]:
    """Read from the device at once: each look would make the host wait for it."""
    wide = widest(links[0].weight.device)
    numbers = []
    for link in links:
        sizes = link.weight.abs()
        row, column = sizes.flatten(1).sum(1).max(), sizes.transpose(0, 1).flatten(1).sum(1).max()
        numbers += [number.to(wide) for number in (row, column, link.bias.to(wide).norm())]
    read = iter(torch.stack(numbers).tolist())
    found = [_LinkSums(next(read), next(read), next(read)) for _ in links]
    return [
        replace(sums, bias=norm_per_sample(link.bias.to(wide)).to(link.bias.dtype))
        if link.bias.ndim > 1
        else sums
        for link, sums in zip(links, found, strict=True)
    ]
