r"""The exact log-determinant, for small dimensions and as the oracle of all other estimators."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.func import jvp

from iresflow.linearization import Linearization, Map
from iresflow.logdet.base import EXPANSION, Kind, LogDetEstimate, LogDetEstimator
from iresflow.streams import Stream
from iresflow.tensors import transformed

__all__ = ["Exact"]

AT_A_TIME = 16
"""Columns of a Jacobian that are computed together, which limits the memory inside the branch."""


@final
@dataclass(frozen=True)
class Exact(LogDetEstimator):
    r""":math:`\log|\det(I + J)|` from the dense Jacobian of each sample.

    Cost for D dimensions: D products of the branch, O(D^3) arithmetic and O(B D^2) memory. The
    surrogate uses Jacobi's formula, :math:`\nabla \log\det(I+J) = \sum_i w_i^\top (\nabla J) e_i`
    with :math:`w_i = (I+J)^{-\top} e_i`. Derivatives of that gradient, of any order, go by
    autograd through the Jacobian and its determinant.

    Arguments:
        limit: Largest D that is accepted.
    """

    limit: int = 4096
    kind: ClassVar[Kind] = "exact"

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        point = linearization.point
        batch, dim = point.shape[0], point[0].numel()
        if dim > self.limit:
            size = batch * dim**2 * point.element_size()
            memory = f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.2g} MiB"
            raise ValueError(
                f"an exact log-determinant in {dim} dimensions needs {memory} for the "
                f"Jacobians of {batch} samples; raise Exact(limit=...) above {dim} if that fits"
            )
        identity = torch.eye(dim, dtype=point.dtype, device=point.device)
        directions = identity.view(dim, 1, *point.shape[1:]).expand(dim, *point.shape).contiguous()
        with torch.no_grad():
            parts = [linearization.jvp(part) for part in directions.split(AT_A_TIME)]
            columns = torch.cat(parts).flatten(2)  # (D, B, D), column i first
            matrix = identity + columns.permute(1, 2, 0)
            sign, value = torch.linalg.slogdet(matrix)
            # Where J is a contraction the determinant is positive (thesis, Lemma 5.4), and no
            # column is longer than 1.
            longest = columns.norm(dim=2).amax(0)
            value = value.masked_fill((sign <= 0) | (longest > EXPANSION), torch.nan)
        surrogate = value
        if transformed():
            value = surrogate = _recorded(linearization.evaluate, point)
        elif torch.is_grad_enabled():
            # Without a check, for which the host would wait: a singular matrix has no value.
            inverse, _ = torch.linalg.inv_ex(matrix)
            weights = inverse.transpose(0, 1).reshape(directions.shape)
            surrogate = linearization.bilinear(weights, directions).sum(0)
            surrogate = linearization.any_order(surrogate, _recorded)
        zero = torch.zeros_like(value)
        return LogDetEstimate(
            value,
            surrogate,
            variance=zero,
            truncation=zero,
            gradient_truncation=zero,
            products=torch.full_like(value, dim),
        )


def _recorded(function: Map, x: Tensor) -> Tensor:
    """The log-determinants ``(B,)`` by operations that autograd records."""
    dim = x[0].numel()
    identity = torch.eye(dim, dtype=x.dtype, device=x.device)
    directions = (row.view(1, *x.shape[1:]).expand_as(x) for row in identity)
    columns = [jvp(function, (x,), (direction,))[1].flatten(1) for direction in directions]
    return torch.linalg.slogdet(identity + torch.stack(columns, dim=2))[1]
