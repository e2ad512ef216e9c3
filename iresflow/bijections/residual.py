"""The invertible residual block, the heart of the package."""

import math
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections.base import Accuracy, Bijection, Inverse, LogDet
from iresflow.bijections.stretch import Stretch
from iresflow.errors import DerivativeError
from iresflow.lipschitz import Branch
from iresflow.lipschitz.passes.chain import Chain
from iresflow.lipschitz.passes.rounding import RoundedChain
from iresflow.logdet import LogDetEstimator, PowerSeries
from iresflow.solvers import attach, solve
from iresflow.tensors import transformed, wide_norm

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
    on, one step of the power iteration normalises them for the whole solve, or as many as make
    the block contractive; without, the settled norms of eval mode do. Its Lipschitz bound is
    certified anew either way, which costs time after each optimiser step.
    """

    def __init__(self, branch: Branch, log_det: LogDetEstimator | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.log_det = log_det or PowerSeries()
        self.name = "a residual block"

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

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        with own_arithmetic():
            if transformed():
                raise DerivativeError(
                    "an inverse is an iteration, which no transform of torch.func goes through: "
                    "use torch.autograd, by which its derivatives of any order are right"
                )
            accuracy = accuracy or Accuracy()
            chain, maps = self._contraction(context)
            lipschitz, dtype = chain.lipschitz, maps[0].dtype
            assert lipschitz is not None
            z = z.to(torch.promote_types(z.dtype, dtype))
            # Cheap steps in the type of the weights, the last ones and the proof in the widest.
            certified = partial(
                solve,
                maps,
                z.detach(),
                lipschitz=lipschitz,
                solver=accuracy.solver,
                context=self.name,
            )
            solution = certified(tol=accuracy.tol)
            x = solution.value.to(z.dtype)
            rounding = wide_norm(solution.value - x)
            # What the rounding of the result to z's type takes at most, the solve has to leave.
            room = accuracy.tol - torch.finfo(z.dtype).eps / 2 * wide_norm(solution.value)
            short = (solution.error + rounding > accuracy.tol) & (room > solution.floor)
            if bool(short.any()):
                again = certified(tol=float(room[short].min()))
                solution = replace(again, steps=solution.steps + again.steps)
                x = solution.value.to(z.dtype)
                rounding = wide_norm(solution.value - x)
            error = solution.error + rounding
            if torch.is_grad_enabled() and (
                z.requires_grad or any(t.requires_grad for t in chain.tensors)
            ):
                x = attach(
                    x,
                    z,
                    chain.linearize(x.to(dtype)),
                    lipschitz=lipschitz,
                    solver=accuracy.solver,
                    context=self.name,
                )
            amplification = math.nextafter(1 / (1 - lipschitz), math.inf)
            return Inverse(
                x, solution.steps, error, solution.floor + rounding, error, amplification
            )

    def _contraction(self, context: Tensor | None) -> tuple[Chain, list[RoundedChain]]:
        chain, maps = self.branch.contraction(context)
        if self.training and torch.is_grad_enabled() and not (chain.lipschitz or 0.0) < 1:
            # A training step's norms lag behind the weights.
            for layer in self.branch.layers:
                layer.sharpen()
            chain, maps = self.branch.contraction(context)
        return chain, maps
