r"""The exact log-determinant, for small dimensions and as the oracle of all other estimators."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.func import jvp

from iresflow.linearization import Linearization, Map
from iresflow.logdet.base import EXPANSION, Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes
from iresflow.powers import Determinant
from iresflow.streams import Stream
from iresflow.tensors import transformed

__all__ = ["Exact", "ExactValue"]

AT_A_TIME = 16
"""Columns of a Jacobian that are computed together, which limits the memory inside the branch."""


@final
@dataclass(frozen=True)
class Exact(LogDetEstimator):
    r""":math:`\log|\det(I + J)|` from the dense Jacobian of each sample.

    Cost for D dimensions: D products of the branch, O(D^3) arithmetic and O(B D^2) memory. The
    surrogate uses Jacobi's formula, :math:`\nabla \log\det(I+J) = \sum_i w_i^\top (\nabla J) e_i`
    with :math:`w_i = (I+J)^{-\top} e_i`. Derivatives of that gradient, of any order, go by
    autograd through the Jacobian and its determinant. A branch that is narrower inside than D
    needs no dense Jacobian, see `iresflow.lipschitz.passes.low_rank`.

    Arguments:
        limit: Largest D that is accepted.
    """

    limit: int = 4096
    kind: ClassVar[Kind] = "exact"

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        point = linearization.point
        _require_few(point, self.limit)
        dim = math.prod(point.shape[1:])
        recorded = None if transformed() else linearization.recorded_determinant()
        if transformed():
            value = surrogate = _recorded(linearization.evaluate, point)
        elif recorded is not None:
            value, surrogate = _checked(recorded).detach(), recorded.value
        elif torch.is_grad_enabled():
            directions = _directions(point)
            with torch.no_grad():
                # The tangents of all directions at once, which the form below asks for again.
                columns = linearization.jvp(directions).flatten(2).movedim(0, 1)
                value = _checked(_determinant(columns))
                # Without a check, for which the host would wait: a singular matrix has no value.
                inverse, _ = torch.linalg.inv_ex(_shifted(columns))
            weights = inverse.transpose(0, 1).reshape(dim, *point.shape)
            surrogate = linearization.bilinear(weights, directions).sum(0)
            surrogate = linearization.any_order(surrogate, _recorded)
        else:
            found = linearization.fused_determinant()
            value = surrogate = _checked(found or _determinant(_columns(linearization)))
        return _exactly(value, surrogate, dim)


@final
@dataclass(frozen=True)
class ExactValue(LogDetEstimator):
    r""":math:`\log|\det(I + J)|` as `Exact` has it, with an unbiased estimate of its gradient.

    The exact gradient keeps D tangents inside the branch. This one keeps those of K probes v:
    :math:`(I+J)^{-\top} v` is solved for with the factors of the determinant, and the surrogate is
    its form with v.

    Arguments:
        probes: K.
        probe: Name of their distribution, ``rademacher``, ``gaussian`` or ``orthogonal``.
        limit: Largest D that is accepted.

    Raises:
        ValueError: probes below 1, or an unknown distribution.
    """

    probes: int = 2
    probe: str = "rademacher"
    limit: int = 4096
    kind: ClassVar[Kind] = "unbiased"

    def __post_init__(self) -> None:
        check_settings(self.probes, self.probe)

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        if not torch.is_grad_enabled():
            return Exact(self.limit).estimate(linearization, generator)
        _require_few(linearization.point, self.limit)
        v = draw_probes(self.probe, self.probes, linearization.point, generator)
        with torch.no_grad():
            columns = _columns(linearization)
            factors, pivots, _ = torch.linalg.lu_factor_ex(_shifted(columns))
            value = _checked(_of_factors(factors, pivots, columns))
            right = v.flatten(2).movedim(0, 2)
            left = torch.linalg.lu_solve(factors, pivots, right, adjoint=True)
        surrogate = linearization.bilinear(left.movedim(2, 0).reshape(v.shape), v).mean(0)
        return _exactly(value, surrogate, columns.shape[1])


def _exactly(value: Tensor, surrogate: Tensor, dim: int) -> LogDetEstimate:
    zero = torch.zeros_like(value)
    return LogDetEstimate(
        value,
        surrogate,
        variance=zero,
        truncation=zero,
        gradient_truncation=zero,
        products=torch.full_like(value, dim),
    )


def _require_few(point: Tensor, limit: int) -> None:
    batch, dim = point.shape[0], math.prod(point.shape[1:])
    if dim > limit:
        size = batch * dim**2 * point.element_size()
        memory = f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.2g} MiB"
        raise ValueError(
            f"an exact log-determinant in {dim} dimensions needs {memory} for the "
            f"Jacobians of {batch} samples; raise Exact(limit=...) above {dim} if that fits"
        )


def _directions(point: Tensor) -> Tensor:
    """The basis of the space for each sample, ``(D, B, *event)``."""
    dim = math.prod(point.shape[1:])
    identity = torch.eye(dim, dtype=point.dtype, device=point.device)
    return identity.view(dim, 1, *point.shape[1:]).expand(dim, *point.shape).contiguous()


def _columns(linearization: Linearization) -> Tensor:
    """The columns of J, ``(B, D, D)``, column i in row i."""
    fused = linearization.fused_columns()
    if fused is not None:
        return fused
    parts = _directions(linearization.point).split(AT_A_TIME)
    return torch.cat([linearization.jvp(part) for part in parts]).flatten(2).movedim(0, 1)


def _shifted(columns: Tensor) -> Tensor:
    """I + J, ``(B, D, D)``."""
    identity = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
    return identity + columns.mT


def _determinant(columns: Tensor) -> Determinant:
    sign, value = torch.linalg.slogdet(_shifted(columns))
    return Determinant(value.masked_fill(sign <= 0, torch.nan), columns.norm(dim=2).amax(1))


def _of_factors(factors: Tensor, pivots: Tensor, columns: Tensor) -> Determinant:
    """The determinant from an LU factorisation of I + J."""
    diagonal = factors.diagonal(dim1=1, dim2=2)
    rows = torch.arange(1, pivots.shape[1] + 1, device=pivots.device)
    odd = ((pivots != rows).sum(1) + (diagonal < 0).sum(1)) % 2 == 1
    value = diagonal.abs().log().sum(1)
    value = value.masked_fill(odd | (diagonal == 0).any(1), torch.nan)
    return Determinant(value, columns.norm(dim=2).amax(1))


def _checked(found: Determinant) -> Tensor:
    """The value; NaN where J is no contraction.

    Of a contraction the determinant is positive (thesis, Lemma 5.4), and no column is longer
    than 1.
    """
    return found.value.masked_fill(found.longest > EXPANSION, torch.nan)


def _recorded(function: Map, x: Tensor) -> Tensor:
    """The log-determinants ``(B,)`` by operations that autograd records."""
    dim = math.prod(x.shape[1:])
    identity = torch.eye(dim, dtype=x.dtype, device=x.device)
    directions = (row.view(1, *x.shape[1:]).expand_as(x) for row in identity)
    columns = [jvp(function, (x,), (direction,))[1].flatten(1) for direction in directions]
    # By the factors: PyTorch's forward derivatives of slogdet, det and solve are wrong under a
    # vmap, which torch.func.hessian of a batch has.
    factors = torch.linalg.lu_factor(identity + torch.stack(columns, dim=2))[0]
    return factors.diagonal(dim1=1, dim2=2).abs().log().sum(1)
