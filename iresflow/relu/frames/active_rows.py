"""Which rows of a ReLU layer are active at a point, and whether they determine it: frames.

The layer of this module is max(0, W x - alpha), as in the paper: the bias of a ``torch.nn.Linear``
is **minus** alpha (`frame_of_layer`). The rows of W that are active at x are a *frame* if they
span the space; then x can be read off the layer's output (H. Eckert, D. Haider, M. Ehler,
P. Balazs, "Invertibility of ReLU-Layers: A Practical Approach", IJCCI 2024).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

__all__ = [
    "FrameBounds",
    "active_frame",
    "active_rows",
    "frame_bounds",
    "frame_of_layer",
    "is_alpha_rectifying",
]

TOLERANCE = 1e-6
"""Smallest ratio of singular values that counts as full rank without a doubt."""

MEMORY = 2**26
"""Entries of the masked matrices that are held at a time: 512 MiB."""


@final
@dataclass(frozen=True, eq=False)
class FrameBounds:
    """The frames that are active at B points.

    Attributes:
        active: Number of active rows, ``(B,)`` int64.
        lower: Smallest singular value of the active rows as a map of the whole space, ``(B,)``;
            0 where there are fewer rows than dimensions. Square roots of the paper's frame bounds
            in eq. (1), as in its Theorem 4.1.
        upper: Largest singular value, ``(B,)``.
        tolerance: Smallest ratio lower / upper that counts as full rank.
        rounding: Largest ratio that can't be told from 0.
    """

    active: Tensor
    lower: Tensor
    upper: Tensor
    tolerance: float
    rounding: float

    @property
    def rectifying(self) -> Tensor:
        """Where the active rows are a frame beyond doubt (Definition 2.6), ``(B,)`` bool."""
        return self.lower > self.tolerance * self.upper

    @property
    def uncertain(self) -> Tensor:
        """Where that can't be told: a ratio above rounding but within the tolerance, ``(B,)``."""
        return ~self.rectifying & (self.lower > self.rounding * self.upper)

    @property
    def a0(self) -> float:
        """A_0 of Theorem 4.1 over these points: their smallest lower bound."""
        return float(self.lower.min())

    @property
    def b0(self) -> float:
        """B_0 of Theorem 4.1 over these points: their largest upper bound."""
        return float(self.upper.max())


def frame_of_layer(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """W ``(m, n)`` and alpha ``(m,)`` of the layer ReLU(W x + bias), in float64: minus its bias.

    Raises:
        ValueError: the module is not ``Linear``, or holds values that are not finite.
    """
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the layer is {type(layer).__name__}; allowed is Linear")
    weight = layer.weight.detach().to("cpu", torch.float64)
    alpha = weight.new_zeros(len(weight)) if layer.bias is None else -layer.bias.detach()
    alpha = alpha.to("cpu", torch.float64)
    check_frame(weight, alpha)
    return weight, alpha


def check_frame(weight: Tensor, alpha: Tensor, x: Tensor | None = None) -> None:
    """Checks W ``(m, n)``, alpha ``(m,)``, and points x ``(B, n)`` where given.

    Raises:
        ValueError: shapes that don't fit, no point, or NaN; alpha may be infinite, for rows that
            are always or never active.
    """
    if weight.dim() != 2 or 0 in weight.shape or alpha.shape != weight.shape[:1]:
        raise ValueError(
            f"W has shape {tuple(weight.shape)} and alpha {tuple(alpha.shape)}; allowed are "
            "(m, n) and (m,)"
        )
    if not bool(torch.isfinite(weight).all()) or bool(torch.isnan(alpha).any()):
        raise ValueError("W holds values that are not finite, or alpha NaN")
    if x is not None:
        check_points(weight, x)


def check_points(weight: Tensor, x: Tensor) -> None:
    """Checks points x ``(B, n)`` for W ``(m, n)``. Errors: `check_frame`."""
    if x.dim() != 2 or x.shape[1] != weight.shape[1] or len(x) == 0:
        raise ValueError(
            f"points have shape {tuple(x.shape)}; allowed is (B, {weight.shape[1]}), B >= 1"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("points hold values that are not finite")


def active_rows(weight: Tensor, alpha: Tensor, x: Tensor) -> Tensor:
    """Which rows are active (Definition 2.5: <x, w_i> >= alpha_i), ``(B, m)`` bool.

    Arguments:
        weight: W, ``(m, n)``.
        alpha: ``(m,)``.
        x: Points ``(B, n)``.

    Errors: `check_frame`.
    """
    weight, alpha, x = weight.double(), alpha.double(), x.double()
    check_frame(weight, alpha, x)
    return x @ weight.mT >= alpha


def active_frame(weight: Tensor, alpha: Tensor, x: Tensor) -> Tensor:
    """The active rows at one point x ``(n,)``, ``(|I|, n)``. Errors: `check_frame`.

    >>> w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> active_frame(w, torch.zeros(3), torch.tensor([2.0, -1.0]))
    tensor([[1., 0.]])
    """
    if x.dim() != 1:
        raise ValueError(f"the point has shape {tuple(x.shape)}; allowed is (n,)")
    return weight[active_rows(weight, alpha, x[None])[0]]


def is_alpha_rectifying(
    weight: Tensor, alpha: Tensor, x: Tensor, *, tolerance: float = TOLERANCE
) -> FrameBounds:
    """Whether W is alpha-rectifying at points (Definition 2.6), with the numbers that tell it.

    Unlike Lemma 2.9 this does not assume W to be full spark: the rank is measured. See
    ``rectifying`` and ``uncertain`` of the result.

    Arguments and errors: as `frame_bounds`.
    """
    return frame_bounds(weight, alpha, x, tolerance=tolerance)


def frame_bounds(
    weight: Tensor, alpha: Tensor, x: Tensor, *, tolerance: float = TOLERANCE
) -> FrameBounds:
    """Extreme singular values of the rows that are active at each point (Theorem 4.1).

    Of the normal matrix of all activity patterns at once, which resolves ratios down to about
    1e-8; those below ``tolerance`` are computed again by an SVD. Cost: O(m n^2) for each pattern.

    These are bounds of the layer on the set around each point where the same rows are active. The
    smallest of them is no lower Lipschitz bound of the whole layer: two points with different
    active rows share fewer.

    Arguments:
        weight: W, ``(m, n)``.
        alpha: ``(m,)``.
        x: Points ``(B, n)``.
        tolerance: Smallest ratio of singular values that counts as full rank, above 1e-7.

    Raises:
        ValueError: as `check_frame`, or a tolerance out of range.
    """
    check_tolerance(tolerance)
    weight = weight.double()
    patterns, which = torch.unique(active_rows(weight, alpha, x), dim=0, return_inverse=True)
    size = weight.shape[1]
    lower, upper = weight.new_zeros(len(patterns)), weight.new_zeros(len(patterns))
    for part in pattern_parts(patterns, weight):
        squares = torch.linalg.eigvalsh(normal_matrices(weight, patterns[part]))
        lower[part] = squares[:, 0].clamp(min=0).sqrt()
        upper[part] = squares[:, -1].clamp(min=0).sqrt()
    count = patterns.sum(1)
    enough = count >= size
    lower[~enough] = 0.0
    close = (enough & (lower <= 10 * tolerance * upper)).nonzero()[:, 0]
    for index in close.split(max(1, MEMORY // weight.numel())):
        values = torch.linalg.svdvals(weight * patterns[index, :, None])
        lower[index], upper[index] = values[:, -1], values[:, 0]
    rounding = max(weight.shape) * torch.finfo(torch.float64).eps
    return FrameBounds(count[which], lower[which], upper[which], tolerance, rounding)


def check_tolerance(tolerance: float) -> None:
    """Raises ValueError for a tolerance that float64 can't resolve, or none at all."""
    if not 1e-7 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; allowed is 1e-7 to 1, both excluded")


def pattern_parts(patterns: Tensor, weight: Tensor) -> Iterator[slice]:
    """Slices of patterns ``(P, m)`` whose masked matrices fit in memory together."""
    step = max(1, MEMORY // weight.numel())
    for begin in range(0, len(patterns), step):
        yield slice(begin, begin + step)


def normal_matrices(weight: Tensor, patterns: Tensor) -> Tensor:
    """W_I^T W_I for patterns ``(P, m)`` of active rows, ``(P, n, n)``, in one product."""
    masked = weight.mT * patterns[:, None, :]
    return masked @ weight
