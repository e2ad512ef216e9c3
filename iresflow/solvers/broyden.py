r"""Broyden's method with a limited memory, sample by sample.

It keeps an approximation :math:`H = I + \sum_i u_i v_i^\top` of the inverse Jacobian
:math:`(I + J)^{-1}` that maps each move's change of residual back to the move, and proposes
:math:`H r`. With a move s and the change :math:`y = -\Delta r`, the update is that of "good
Broyden" in the inverse form,

.. math:: u = \frac{s - H y}{s^\top H y}, \qquad v = H^\top s

(Broyden, *A Class of Methods for Solving Nonlinear Simultaneous Equations*, 1965, eq. 4.12). The
oldest updates are forgotten. No step of it is trusted: see `iresflow.solvers.residuals`.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.solvers.base import Proposer, Solver, check_counts

__all__ = ["Broyden"]

SAFE = 1e-3
"""An update whose divisor is below this share of its largest possible size is left out."""


@final
@dataclass(frozen=True)
class Broyden(Solver):
    """Broyden's method from the fixed-point iteration's first step.

    Arguments:
        memory: Updates that are remembered, two tensors of a sample's size for each.
        max_steps: Evaluations of g after which the driver gives up.

    Raises:
        ValueError: memory or max_steps below 1.
    """

    memory: int = 8
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_counts(memory=self.memory, max_steps=self.max_steps)

    def begin(self) -> Proposer:
        return _Updates(self.memory)


@final
class _Updates(Proposer):
    """u and v as rows of matrices ``(N, m, D)``, the oldest overwritten first."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._count = 0
        self._u: Tensor | None = None
        self._v: Tensor | None = None

    def propose(
        self, residual: Tensor, move: Tensor | None, change: Tensor | None
    ) -> Tensor | None:
        if move is None or change is None:
            return None
        r, s, y = (t.flatten(1)[:, None] for t in (residual, move, -change))
        if self._u is None or self._v is None:
            shape = (len(r), self._memory, r.shape[2])
            self._u, self._v = r.new_zeros(shape), r.new_zeros(shape)
        at = self._count % self._memory
        self._count += 1
        # Without the update that is to be forgotten: a row of zeros is none.
        self._u[:, at], self._v[:, at] = 0, 0
        image = _applied(y, self._v, self._u)
        adjoint = _applied(s, self._u, self._v)
        divisor = (s * image).sum(2)
        largest = torch.linalg.vector_norm(s, dim=2) * torch.linalg.vector_norm(image, dim=2)
        safe = divisor.abs() > SAFE * largest
        self._u[:, at] = torch.where(safe, (s - image)[:, 0] / divisor, 0)
        self._v[:, at] = torch.where(safe, adjoint[:, 0], 0)
        return _applied(r, self._v, self._u).view_as(residual)

    def keep(self, rows: Tensor) -> None:
        if self._u is not None and self._v is not None:
            self._u, self._v = self._u[rows], self._v[rows]


def _applied(a: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """a plus the rows of ``outer``, each times a's product with its row of ``inner``."""
    return torch.baddbmm(a, torch.matmul(a, inner.mT), outer)
