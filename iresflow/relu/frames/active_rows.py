"""Which rows of a ReLU layer are active at a point, and whether they determine it: frames.

The layer is ReLU(W x + b). The papers write max(0, W x - alpha): the bias is **minus** alpha. The
rows of W that are active at x are a *frame* if they span the space; then x can be read off the
layer's output (H. Eckert, D. Haider, M. Ehler, P. Balazs, "Invertibility of ReLU-Layers: A
Practical Approach", IJCCI 2024).
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.relu.networks.network import Layer
from iresflow.relu.ranks import Spectrum, singular_values

__all__ = ["FrameBounds", "active_rows", "frame_bounds", "frame_on_box"]

ROUNDING = 4.0
"""Times n + 1, the precision, and the norms of row and point: how far a pre-activation may be off.

Of a sum of n + 1 products it is at most about n + 1 of these.
"""


@final
@dataclass(frozen=True, eq=False)
class FrameBounds:
    """The frames that are active at B points.

    A row whose pre-activation is zero up to rounding, a *tie*, is active by Definition 2.5, but
    the output, which is zero there, does not show it: no bound and no "beyond doubt" counts it.

    Attributes:
        active: Number of active rows without ties, ``(B,)`` int64.
        ties: Number of ties, ``(B,)`` int64.
        lower: Smallest singular value of the active rows as a map of the whole space, ``(B,)``;
            0 where there are fewer rows than dimensions. Square roots of the paper's frame bounds
            in eq. (1); the smallest of all points is A_0 of its Theorem 4.1.
        upper: Largest singular value, ``(B,)``; the largest of all points is B_0.
        rectifying: Where the active rows are a frame beyond doubt (Definition 2.6), ``(B,)`` bool.
        uncertain: Where rounding decides whether they are: on a rank, or on ties, ``(B,)`` bool.
    """

    active: Tensor
    ties: Tensor
    lower: Tensor
    upper: Tensor
    rectifying: Tensor
    uncertain: Tensor


def checked_weight(layer: Layer) -> Tensor:
    """W ``(m, n)`` of a ReLU layer.

    Raises:
        ValueError: the layer's activation is another, or it holds values that are not finite. A
            bias may be infinite, for rows that are always or never active.
    """
    if layer.slope != 0:
        raise ValueError(f"layer {layer.name} has the negative slope {layer.slope}; allowed is 0")
    weight = torch.from_numpy(layer.affine.dense())
    if not bool(torch.isfinite(weight).all()) or bool(torch.isnan(layer.affine.bias).any()):
        raise ValueError(f"layer {layer.name} holds values that are not finite")
    return weight


def checked_points(x: Tensor, size: int) -> Tensor:
    """Points ``(B, *event)`` as float64 ``(B, n)``.

    Raises:
        ValueError: another size, no point, or values that are not finite.
    """
    flat = x.detach().to("cpu", torch.float64).flatten(1) if x.dim() > 1 else x
    if flat.dim() != 2 or flat.shape[1] != size or len(flat) == 0:
        raise ValueError(f"points have shape {tuple(x.shape)}; allowed is (B, {size}), B >= 1")
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("points hold values that are not finite")
    return flat


def active_rows(layer: Layer, x: Tensor) -> Tensor:
    """Which rows are active (Definition 2.5: pre-activations of 0 or more), ``(B, m)`` bool.

    Arguments:
        layer: A ReLU layer.
        x: Points ``(B, n)``.

    Raises:
        ValueError: a layer or points that don't fit, or values that are not finite.
    """
    weight = checked_weight(layer)
    return checked_points(x, weight.shape[1]) @ weight.mT >= -layer.affine.bias


def frame_bounds(layer: Layer, x: Tensor) -> FrameBounds:
    """Extreme singular values of the rows that are active at each point (Theorem 4.1).

    Unlike Lemma 2.9 this does not assume W to be full spark: the rank is measured. Cost: the
    singular values of each pattern of active rows.

    These are bounds of the layer on the set around each point where the same rows are active. The
    smallest of them is no lower Lipschitz bound of the whole layer: two points with different
    active rows share fewer.

    Arguments:
        layer: A ReLU layer.
        x: Points ``(B, n)``.

    Errors: `active_rows`.
    """
    weight = checked_weight(layer)
    bias, size = layer.affine.bias, weight.shape[1]
    flat = checked_points(x, size)
    products = flat @ weight.mT
    precision = ROUNDING * (size + 1) * torch.finfo(torch.float64).eps
    doubt = precision * (flat.norm(dim=1, keepdim=True) * weight.norm(dim=1) + bias.abs())
    doubt = torch.where(bias.isinf(), 0.0, doubt)
    active, possible = products + bias > doubt, products + bias >= -doubt
    spectra = _spectra(weight, active)
    sure = torch.tensor([spectrum.spans(size) == "yes" for spectrum in spectra])
    ties = (possible & ~active).sum(1)
    # Rows that may be active can only add to the rank.
    most = _spectra(weight, possible) if bool(ties.any()) else spectra
    maybe = torch.tensor([spectrum.spans(size) != "no" for spectrum in most])
    return FrameBounds(
        active.sum(1),
        ties,
        torch.stack([_extreme(spectrum, size) for spectrum in spectra]),
        torch.stack([_extreme(spectrum, 1) for spectrum in spectra]),
        sure,
        ~sure & maybe,
    )


def frame_on_box(layer: Layer, low: Tensor, high: Tensor) -> Spectrum:
    """The singular values of the rows that are active in a whole box.

    If they span the space, W is alpha-rectifying on a convex set, and the layer is invertible on
    it (Theorem 2.7); and the smallest of them is a lower Lipschitz bound of the layer on the box,
    as these rows are active at any two of its points.

    Arguments:
        layer: A ReLU layer.
        low, high: Limits of each coordinate, ``(n,)``.

    Raises:
        ValueError: a layer or limits that don't fit, or values that are not finite.
    """
    weight = checked_weight(layer)
    lower, upper = checked_points(torch.stack([low, high]), weight.shape[1])
    if not bool((lower <= upper).all()):
        raise ValueError("a lower limit of the box is above its upper one")
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    least = weight @ middle - weight.abs() @ half + layer.affine.bias
    reach = weight.norm(dim=1) * (middle.norm() + half.norm()) + layer.affine.bias.abs()
    doubt = ROUNDING * (len(lower) + 1) * torch.finfo(torch.float64).eps * reach
    return singular_values(weight[least > torch.where(reach.isinf(), 0.0, doubt)])


def _spectra(weight: Tensor, patterns: Tensor) -> list[Spectrum]:
    """The singular values of the rows in each pattern ``(B, m)`` bool, once for equal ones."""
    different, which = torch.unique(patterns, dim=0, return_inverse=True)
    found = [singular_values(weight[rows]) for rows in different]
    return [found[i] for i in which.tolist()]


def _extreme(spectrum: Spectrum, number: int) -> Tensor:
    """Singular value of that number, from 1; 0 where there are fewer."""
    values = spectrum.values
    return values[number - 1] if len(values) >= number else values.new_zeros(())
