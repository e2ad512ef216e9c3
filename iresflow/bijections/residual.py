"""The invertible residual block, the heart of the package."""

from typing import final

import torch
from torch import Tensor

from iresflow.bijections.base import Accuracy, Bijection, Inverse, LogDet
from iresflow.lipschitz import Branch
from iresflow.lipschitz.stretch import Stretch
from iresflow.logdet import LogDetEstimator, PowerSeries
from iresflow.solvers import solve

__all__ = ["ResidualBlock"]


@final
class ResidualBlock(Bijection):
    r""":math:`z = x + g(x)` with :math:`\operatorname{Lip}(g) < 1` (thesis, Theorem 4.1).

    Arguments:
        branch: g.
        log_det: The estimator that is used when `forward` is given none.
    """

    def __init__(self, branch: Branch, log_det: LogDetEstimator | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.log_det = log_det or PowerSeries()

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        linearization = self.branch.linearize(x, context)
        estimate = (log_det or self.log_det)(linearization)
        # The value is read last, so that it shares one backward pass with the surrogate.
        return x + linearization.value, estimate.log_det

    def stretch(self, dim: int) -> Stretch:
        return Stretch.residual(self.branch.bound().upper, dim)

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x + self.branch(x, context)

    @torch.no_grad()
    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        accuracy = accuracy or Accuracy()
        solution = solve(
            self.branch.evaluator(context),
            z,
            lipschitz=self.branch.bound().upper,
            tol=accuracy.tol,
            solver=accuracy.solver,
            context="a residual block",
        )
        return Inverse(solution.value, solution.steps, solution.error)
