r"""Norms of convolutions on large images, from those on small ones.

An operator that is the same everywhere but at the borders has nearly the norm that it has on an
image of a few windows' size. With functions :math:`\chi_j` of the pixels, :math:`\sum_j \chi_j^2 =
1`, and the Gram matrix :math:`G = A^\top A` by its blocks :math:`G_{ab}` of pixels a and b,

.. math:: \langle x, G x \rangle = \sum_j |A \chi_j x|^2 + \sum_{a, b} \Theta_{ab} \langle x_a,
    G_{ab} x_b \rangle, \qquad \Theta_{ab} = 1 - \sum_j \chi_j(a) \chi_j(b)

(the localisation formula of Ismagilov, Morgan and Simon; Cycon et al., Schroedinger Operators,
theorem 3.2; here of matrices). Each window fits into a small image with the same borders, so the
first sum is at most the squared norm there times :math:`|x|^2`; and the second, by Schur's test,
:math:`\max_a \sum_b \Theta_{ab} |G_{ab}|` times that.

Along an axis :math:`\chi_j(a) = \cos(\pi a / 2T - \pi j / 2)` where the angle is at most a right
one. Then :math:`\sum_j \chi_j(a) \chi_j(b) \ge \cos(\pi (a - b) / 2T)` up to distances of T, and
the second sum falls with the square of the ramp T.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from iresflow.lipschitz.bounds.axes import Reading, tap_matrices
from iresflow.lipschitz.bounds.banded import taps_bound, taps_cost
from iresflow.lipschitz.bounds.base import EPS, scaled

__all__ = ["localized_norm"]

RAMPS = (32, 24, 16, 12, 8, 6, 4)
"""Pixels T over which a window falls from 1 to 0."""


def localized_norm(
    kernel: Tensor, rows: Reading, columns: Reading, usual: float, most: float
) -> float | None:
    """An upper bound of the norm of a convolution with stride and dilation 1.

    Arguments:
        kernel: ``(D, C, k, l)``.
        rows, columns: What it reads along both axes, no circles.
        usual: Floating-point operations that the norm on the small image may cost.
        most: The same where that is too few for any window.

    Returns:
        The bound, or None where no window is affordable, or none is smaller than the image.
    """
    whole = [rows, columns]
    shorter = {ramp: [_shortened(axis, 2 * ramp) for axis in whole] for ramp in RAMPS}
    costs = {
        ramp: taps_cost(kernel, *(_taps(axis) for axis in axes))
        for ramp, axes in shorter.items()
        if axes != whole and max(kernel.shape[2:]) <= ramp
    }
    affordable = [ramp for ramp, cost in costs.items() if cost <= most]
    if not affordable:
        return None
    ramp = max((r for r in affordable if costs[r] <= usual), default=min(affordable))
    bound = taps_bound(kernel, *(_taps(axis) for axis in shorter[ramp]))
    if bound is None:
        return None
    turns = [
        0.0 if axis == unchanged else math.pi / (2 * ramp)
        for axis, unchanged in zip(shorter[ramp], whole, strict=True)
    ]
    frozen, power = scaled(kernel.detach().cpu())
    excess = _excess(frozen, [_shortened(axis, 1) for axis in whole], turns)
    return math.sqrt((bound.upper / power) ** 2 + excess) * power * (1 + 8 * EPS)


def _borders(axis: Reading) -> tuple[int, int]:
    """Pixels at either end that are read differently from those in the middle."""
    return max(axis.before + 1, axis.taps - 1), max(axis.after + 1, axis.taps - 1)


def _shortened(axis: Reading, inner: int) -> Reading:
    """The axis with so many pixels between its borders, or itself where it has no more."""
    size = sum(_borders(axis)) + inner
    return replace(axis, size=size) if size < axis.size else axis


def _taps(axis: Reading) -> Tensor:
    """The 0-1 matrices ``(taps, outputs, inputs)``; inputs that nothing reads at the end are
    left out."""
    return tap_matrices(axis.sources[axis.places()])


def _excess(kernel: Tensor, axes: list[Reading], turns: list[float]) -> float:
    r""":math:`\max_a \sum_b \Theta_{ab} |G_{ab}|` over the pixels of an image with each border.

    Arguments:
        kernel: ``(D, C, k, l)``, float64.
        axes: Those of an image just large enough to have every kind of pixel.
        turns: :math:`\pi / 2T` along each axis, 0 where there are no windows.
    """
    cosines = []
    for axis, turn in zip(axes, turns, strict=True):
        pixel = torch.arange(int(axis.sources[axis.places()].max()) + 1, dtype=torch.float64)
        cosines.append((turn * (pixel[:, None] - pixel)).cos())
    rows = torch.zeros(len(cosines[0]), len(cosines[1]), dtype=torch.float64)
    for y, z, norms in _block_norms(kernel, axes):
        rows[y] += (norms * (1 - cosines[0][y, z] * cosines[1])).sum(1)
    many, few, *sides = kernel.shape
    taps, copies = math.prod(sides), math.prod(a.before + a.after + 1 for a in axes)
    # The entries of G are off by this at most in all of a row, as those of absolute values add up.
    absolute = float(kernel.square().sum((0, 1)).sqrt().sum())
    slack = 2 * (many + taps**2 + 4) * EPS * copies * absolute**2
    # The norms' powers round relative to Frobenius norms, and the cosines relative to 1.
    return (float(rows.max()) + slack) * (1 + 1e-10 + few**3 * EPS)


def _block_norms(kernel: Tensor, axes: list[Reading]) -> Iterator[tuple[int, int, Tensor]]:
    """Upper bounds ``(w, w)`` of the norms of the blocks of G, for each pair of image rows.

    That of M is at most the eighth root of the Frobenius norm of :math:`(M^\\top M)^4`.
    """
    rows, columns = (_taps(axis) for axis in axes)
    many, few, high, wide = kernel.shape
    taps = kernel.permute(2, 3, 1, 0).reshape(high * wide * few, many)
    products = (taps @ taps.mT).view(high, wide, few, high, wide, few)
    products = products.permute(0, 3, 1, 4, 2, 5).reshape(high * high, -1)
    pairs = torch.einsum("aoy,boz->yzab", rows, rows)
    pixels = torch.einsum("iox,jow->xwij", columns, columns).flatten(2)
    known: dict[bytes, Tensor] = {}
    for y, z in pairs.sum((2, 3)).nonzero().tolist():
        pattern = pairs[y, z].flatten()
        key = pattern.numpy().tobytes()
        if key not in known:
            coupled = (pattern @ products).view(wide * wide, few * few)
            blocks = (pixels @ coupled).unflatten(2, (few, few))
            gram = blocks.mT @ blocks
            for _ in range(2):
                gram = gram @ gram
            known[key] = torch.linalg.matrix_norm(gram) ** 0.125
        yield y, z, known[key]
