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
stage passes on the error that came in times its own Lipschitz constant.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.lipschitz.chain import ChainLinearization, Stage, evaluate_chain
from iresflow.tensors import norm_per_sample

__all__ = ["Snapshot"]

ACTIVATION_ROUNDING = 8.0
"""Error of a computed activation, in units of eps (|h| + sqrt n): a sigmoid or exponential to a
few units in the last place, and the rounding of its argument."""


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
        stages = [replace(stage, weight=stage.weight.to(dtype)) for stage in self._stages]
        gains = [_gain(stage, norm) for stage, norm in zip(stages, self._norms, strict=True)]
        factors = [
            ACTIVATION_ROUNDING * norm
            + _product_rounding(stage.weight) * stage.layer.amplification
            for stage, norm in zip(stages, self._norms, strict=True)
        ]

        @torch.no_grad()
        def evaluate(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            rounding = x.new_zeros(len(x))
            entering = norm_per_sample(x)
            for stage, gain, factor in zip(stages, gains, factors, strict=True):
                entering += math.sqrt(math.prod(x.shape[1:]))
                x = evaluate_chain([_rows(stage, index)], x)
                leaving = norm_per_sample(x)
                rounding = gain * rounding + factor * entering + leaving
                entering = leaving
            return x, rounding

        return evaluate


def _gain(stage: Stage, norm: float) -> float:
    return norm if stage.activation is None else norm * stage.activation.lipschitz


def _product_rounding(weight: Tensor) -> float:
    """k times the bound of the norm of the absolute values' matrix."""
    sizes = weight.detach().abs()
    row = float(sizes.flatten(1).sum(1).max())
    column = float(sizes.transpose(0, 1).flatten(1).sum(1).max())
    return (weight[0].numel() + 1) * math.sqrt(row * column)


def _rows(stage: Stage, index: Tensor) -> Stage:
    """The stage for some samples of the batch only."""
    return stage if stage.bias.ndim == 1 else replace(stage, bias=stage.bias[index])
