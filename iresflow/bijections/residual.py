"""The invertible residual block, the heart of the package."""

import math
from typing import final

import torch
from torch import Tensor

from iresflow.bijections.base import Accuracy, Bijection, Inverse, LogDet
from iresflow.bijections.stretch import Stretch
from iresflow.lipschitz import Branch
from iresflow.logdet import LogDetEstimator, PowerSeries
from iresflow.solvers import Arithmetic, attach, solve
from iresflow.tensors import wide_norm, widest

__all__ = ["ResidualBlock"]


@final
class ResidualBlock(Bijection):
    r""":math:`z = x + g(x)` with :math:`\operatorname{Lip}(g) < 1` (thesis, Theorem 4.1).

    Arguments:
        branch: g.
        log_det: The estimator that is used when `forward` is given none.

    Attributes:
        name: What errors call the block; a flow sets it to the block's place.

    The inverse is the fixed point of :math:`x \mapsto z - g(x)` (thesis, Algorithm 1), to a
    certified error. In training mode it inverts the block as its weights act then: with gradients
    on, one step of the power iteration normalises them for the whole solve; without, the stored
    norms do. Its Lipschitz bound is certified anew either way, which costs time after each
    optimiser step.
    """

    def __init__(self, branch: Branch, log_det: LogDetEstimator | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.log_det = log_det or PowerSeries()
        self.name = "a residual block"

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

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        accuracy = accuracy or Accuracy()
        snapshot = self.branch.snapshot(context)
        z = z.to(torch.promote_types(z.dtype, snapshot.dtype))
        # Cheap steps in the type of the weights, the last ones and the proof in the widest.
        dtypes = dict.fromkeys((snapshot.dtype, widest(z.device)))
        solution = solve(
            [Arithmetic(snapshot.evaluator(d), d, snapshot.linearize) for d in dtypes],
            z.detach(),
            lipschitz=snapshot.lipschitz,
            tol=accuracy.tol,
            solver=accuracy.solver,
            context=self.name,
        )
        x = solution.value.to(z.dtype)
        rounding = wide_norm(solution.value - x)
        error = solution.error + rounding
        if torch.is_grad_enabled() and (z.requires_grad or snapshot.requires_grad):
            x = attach(
                x,
                z,
                snapshot.linearize(x.to(snapshot.dtype)),
                lipschitz=snapshot.lipschitz,
                solver=accuracy.solver,
                context=self.name,
            )
        lipschitz = math.nextafter(1 / (1 - snapshot.lipschitz), math.inf)
        return Inverse(x, solution.steps, error, solution.floor + rounding, error, lipschitz)
