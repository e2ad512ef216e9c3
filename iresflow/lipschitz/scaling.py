r"""A tighter constant of a chain of layers, by diagonal scalings between them.

An activation acts on entries one by one, so its slopes commute with a positive diagonal matrix T
(of which an activation with several values for each entry has a copy for each): :math:`A_2 D A_1 =
(A_2 T^{-1}) D (T A_1)`, and :math:`|A_2 D A_1| \le L\, |A_2 T^{-1}|\, |T A_1|` for *every* T, with
L the activation's constant. The product of norms is that for T = I. The smallest product is found
by minimising smooth upper approximations of the norms' logarithms, which are convex in the
logarithms of T for two layers; what is certified is the product at the T that was found, by the
same bounds as for the layers themselves.

References:
    Bauer, F. L. (1963), Optimally scaled matrices, Numerische Mathematik 5. Efficient and Accurate
    Estimation of Lipschitz Constants for Deep Neural Networks (Fazlyab et al., 2019), of whose
    multipliers these are those for slopes in [-1, 1]: https://arxiv.org/abs/1906.04893
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.lipschitz.bounds.base import Bound
from iresflow.lipschitz.branch import Branch
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.form import Alone
from iresflow.lipschitz.layers.linear import NormalizedConv2d

__all__ = ["DiagonalScaling"]

GRID = 16
"""Frequencies along each axis at most, by which the search sees a convolution's norm."""

POWERS = (4, 10)
"""Logarithms of the Schatten powers, to the base 2, that stand for the norm at the search's
beginning and at its end: a larger one is closer to the norm, and less smooth."""

RATE = 0.1
"""First step of the search, of the logarithms of T."""


@final
@dataclass(frozen=True)
class DiagonalScaling:
    """The bound of a branch by the best diagonal scalings between its layers.

    It is never above `Branch.bound`. Branches of other links than chained ones have that bound.

    Arguments:
        steps: Of the search, each about as much work as the layers' norms.

    Raises:
        ValueError: steps below 1.

    Example:
        >>> from iresflow import VectorFlow
        >>> flow = VectorFlow(2, blocks=1, hidden=(8, 8)).eval()
        >>> flow.certify(bound=DiagonalScaling(20)).largest <= flow.certify().largest
        True
    """

    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")

    def __call__(self, branch: Branch) -> Bound:
        """The certified bound of a branch's Euclidean Lipschitz constant.

        Errors: as `Branch.bound`.
        """
        product = branch.bound()
        layers = [layer for layer in branch.layers if isinstance(layer, NormalizedLayer)]
        chained = len(layers) == len(branch.layers) and all(type(x.form) is Alone for x in layers)
        if not chained or len(layers) < 2 or not product.upper < math.inf:
            return product
        activations = [a if isinstance(a, Activation) else None for a in branch.activations]
        widths = [1 if a is None else a.width for a in activations]
        with torch.no_grad():
            weights = [layer.normalized_weight().double() for layer in layers]
        logs = self._search(layers, weights, widths)
        scaled = Bound(1.0, 1.0, "")
        parts = zip(activations, layers, weights, _ends(logs, widths), strict=True)
        for activation, layer, weight, ends in parts:
            constant = 1.0 if activation is None else activation.lipschitz
            pointwise = Bound(constant, constant, "")
            scaled = scaled.then(pointwise).then(_bound(layer, weight, ends))
        return min(scaled, product, key=lambda bound: bound.upper)

    @torch.enable_grad()
    def _search(
        self, layers: Sequence[NormalizedLayer], weights: Sequence[Tensor], widths: Sequence[int]
    ) -> list[Tensor]:
        """The logarithms of T after each layer but the last one, ``(n,)`` each."""
        symbols = [_symbol(x, w) for x, w in zip(layers, weights, strict=True)]
        logs = [w.new_zeros(len(w)).requires_grad_() for w in weights[:-1]]
        optimizer = torch.optim.Adam(logs, RATE)
        for step in range(self.steps):
            share = step / self.steps
            optimizer.param_groups[0]["lr"] = RATE * (1 - share)
            power = round(POWERS[0] + (POWERS[1] - POWERS[0]) * share)
            pairs = zip(symbols, _ends(logs, widths), strict=True)
            loss = torch.stack([_log_norm(_scaled(s, ends), power) for s, ends in pairs]).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return [log.detach() for log in logs]


Ends = tuple[Tensor | None, Tensor | None]
"""Logarithms of the scalings of what enters a layer and of what leaves it; None for none."""


def _ends(logs: Sequence[Tensor], widths: Sequence[int]) -> list[Ends]:
    """Of each layer, an entry of which enters as often as its activation has values for it."""
    entering = [None, *(log.repeat(n) for log, n in zip(logs, widths[1:], strict=True))]
    return list(zip(entering, [*logs, None], strict=True))


def _scaled(weight: Tensor, ends: Ends) -> Tensor:
    """T A S^-1 for a weight ``(D, C, ...)``."""
    entering, leaving = ends
    if leaving is not None:
        weight = weight * leaving.exp().reshape(-1, *[1] * (weight.ndim - 1))
    if entering is not None:
        weight = weight * (-entering).exp().reshape(-1, *[1] * (weight.ndim - 2))
    return weight


def _symbol(layer: NormalizedLayer, weight: Tensor) -> Tensor:
    """``(D, C)``, or the symbol ``(D, C, F)`` of a convolution at the frequencies of a grid."""
    if not isinstance(layer, NormalizedConv2d):
        return weight
    grid = [min(max(n, k), GRID) for n, k in zip(layer.image_size, weight.shape[2:], strict=True)]
    return torch.fft.fft2(weight, grid).flatten(2)


def _log_norm(symbol: Tensor, power: int) -> Tensor:
    r"""The logarithm of the Schatten norm of order :math:`2^{power + 1}` of all its matrices."""
    matrices = symbol.reshape(*symbol.shape[:2], -1).movedim(2, 0)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mH
    gram, log = matrices @ matrices.mH, torch.zeros((), dtype=torch.float64)
    for k in range(power):
        # In range: the traces of what is squared add up to 1.
        trace = gram.diagonal(dim1=1, dim2=2).real.sum()
        log = log + trace.log() / 2 ** (k + 1)
        gram = gram / trace
        gram = gram @ gram
    return log + gram.diagonal(dim1=1, dim2=2).real.sum().log() / 2 ** (power + 1)


def _bound(layer: NormalizedLayer, weight: Tensor, ends: Ends) -> Bound:
    """Of a layer that is scaled at both ends.

    Its weight may be off by a rounding in its own type, and be 0 below the normal numbers: such
    changes have at most the sum of their taps' Frobenius norms as theirs.
    """
    info = torch.finfo(layer.weight.dtype)
    moved = _scaled(weight, ends)
    error = 2 * info.eps * moved.abs() + _scaled(torch.full_like(weight, info.tiny), ends)
    taps = torch.linalg.vector_norm(error.reshape(*error.shape[:2], -1), dim=(0, 1))
    found = layer.tight_bound(moved, layer.left.to(moved.dtype))
    upper = found.upper + float(taps.sum()) * layer.amplification
    return Bound(upper * (1 + 1e-15), found.estimate, f"scaled {found.method}")
