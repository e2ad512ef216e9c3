r"""Anderson acceleration, sample by sample.

Of the last m moves :math:`\Delta x_i` and the changes :math:`\Delta r_i` of the residual in them,
it takes the combination that leaves least of the residual if that were linear,

.. math:: \gamma = \arg\min_\gamma |r - \Delta R\,\gamma|, \qquad
          \text{move} = r - (\Delta X + \Delta R)\,\gamma

(Anderson, *Iterative Procedures for Nonlinear Integral Equations*, 1965; Walker and Ni, *Anderson
Acceleration for Fixed-Point Iterations*, 2011, eq. 2.2). For a linear map and a long memory that
is GMRES. No step of it is trusted: see `iresflow.solvers.residuals`.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.solvers.base import Proposer, Solver, check_counts

__all__ = ["Anderson"]

RIDGE = 16.0
"""Added to the normal equations' diagonal, in eps times itself: moves that are multiples of each
other within rounding then share their coefficient, rather than having huge ones."""


@final
@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration of the fixed-point iteration.

    Arguments:
        memory: Moves m that are remembered, two tensors of a sample's size for each.
        max_steps: Evaluations of g after which the driver gives up.

    Raises:
        ValueError: memory or max_steps below 1.
    """

    memory: int = 5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_counts(memory=self.memory, max_steps=self.max_steps)

    def begin(self) -> Proposer:
        return _Window(self.memory)

    def mixed(self) -> int:
        return self.memory


@final
class _Window(Proposer):
    """The last moves as rows of matrices ``(N, m, D)``, the oldest overwritten first."""

    # From the first move on:
    _steps: Tensor  # moves plus changes, what an image changed by
    _changes: Tensor
    _gram: Tensor  # of the changes, (N, m, m)

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._count = 0

    def propose(
        self, residual: Tensor, move: Tensor | None, change: Tensor | None
    ) -> Tensor | None:
        if move is None or change is None:
            return None
        r = residual.flatten(1)
        self._remember(move.flatten(1), change.flatten(1), r)
        used = min(self._count, self._memory)
        changes, steps = self._changes[:, :used], self._steps[:, :used]
        gamma = self._coefficients(torch.matmul(changes, r[:, :, None]), used)
        step = torch.baddbmm(r[:, None], gamma.mT, steps, alpha=-1)
        return step.view_as(residual)

    def keep(self, rows: Tensor) -> None:
        if self._count:
            self._steps, self._changes = self._steps[rows], self._changes[rows]
            self._gram = self._gram[rows]

    def _remember(self, move: Tensor, change: Tensor, like: Tensor) -> None:
        if self._count == 0:
            shape = (len(like), self._memory, like.shape[1])
            self._steps, self._changes = like.new_empty(shape), like.new_empty(shape)
            self._gram = like.new_zeros(len(like), self._memory, self._memory)
        at = self._count % self._memory
        self._count += 1
        used = min(self._count, self._memory)
        torch.add(move, change, out=self._steps[:, at])
        self._changes[:, at] = change
        products = torch.matmul(self._changes[:, :used], change[:, :, None])[..., 0]
        self._gram[:, at, :used] = products
        self._gram[:, :used, at] = products

    def _coefficients(self, right: Tensor, used: int) -> Tensor:
        """gamma ``(N, m, 1)``; not finite where the equations are singular."""
        gram = self._gram[:, :used, :used]
        eps = torch.finfo(gram.dtype).eps
        # Scaled to a unit diagonal: changes shrink by orders of magnitude from move to move.
        size = gram.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
        size = size.clamp_min(torch.finfo(gram.dtype).tiny)
        scaled = gram / size / size.mT
        scaled.diagonal(dim1=1, dim2=2).add_(RIDGE * eps)
        factor, _ = torch.linalg.cholesky_ex(scaled)
        return torch.cholesky_solve(right / size, factor) / size
