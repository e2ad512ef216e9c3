"""A layer given by its numbers, where there is no module to read."""

import torch
from torch import Tensor

from iresflow.relu.networks.affine import DenseMap
from iresflow.relu.networks.network import Layer

__all__ = ["dense_layer"]


def dense_layer(weight: Tensor, bias: Tensor | None = None, slope: float = 0.0) -> Layer:
    """The layer x -> s(W x + b), in float64.

    Arguments:
        weight: W, ``(m, n)``.
        bias: b, ``(m,)``; None for 0. It may be infinite, for rows that are always or never on.
        slope: Of s on the negative side: 0 for ReLU, above 0 for LeakyReLU, 1 for none.

    Raises:
        ValueError: shapes that don't fit, a weight that is not finite, NaN, a negative slope.
    """
    weight = torch.as_tensor(weight).detach().to("cpu", torch.float64)
    bias = weight.new_zeros(weight.shape[:1]) if bias is None else torch.as_tensor(bias)
    bias = bias.detach().to("cpu", torch.float64)
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"W has shape {tuple(weight.shape)} and b {tuple(bias.shape)}; allowed are (m, n) and "
            "(m,)"
        )
    if not bool(torch.isfinite(weight).all()) or bool(torch.isnan(bias).any()):
        raise ValueError("W holds values that are not finite, or b NaN")
    if not 0 <= slope < float("inf"):
        raise ValueError(f"slope={slope}; allowed is 0 or more")
    return Layer("given", DenseMap(weight, bias), float(slope))
