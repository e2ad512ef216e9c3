"""The invertible residual block, the heart of the package."""

from typing import final

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections.base import LogDet
from iresflow.bijections.branch_block import BranchBlock
from iresflow.bijections.stretch import Stretch

__all__ = ["ResidualBlock"]


@final
class ResidualBlock(BranchBlock):
    r""":math:`z = x + g(x)` with :math:`\operatorname{Lip}(g) < 1` (thesis, Theorem 4.1).

    Arguments:
        branch: g.
        log_det: The estimator that is used when `forward` is given none.

    The inverse is the fixed point of :math:`x \mapsto z - g(x)` (thesis, Algorithm 1), to a
    certified error. In training mode it inverts the block as its weights act then: with gradients
    on, one step of the power iteration normalises them for the whole solve, or as many as make
    the block contractive; without, the settled norms of eval mode do. Its Lipschitz bound is
    certified anew either way, which costs time after each optimiser step.
    """

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        with own_arithmetic():
            linearization = self.branch.linearize(x, context)
            estimate = (log_det or self.log_det)(linearization)
            # The value is read last, so that it shares one backward pass with the surrogate.
            return x + linearization.value, estimate.log_det

    @torch.no_grad()
    def stretch(self, dim: int) -> Stretch:
        with own_arithmetic():
            return Stretch.residual(self.branch.bound().upper, dim)

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        with own_arithmetic():
            return x + self.branch(x, context)
