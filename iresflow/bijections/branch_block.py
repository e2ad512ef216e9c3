"""What blocks that are built on a contractive branch have in common."""

import math
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections.base import Bijection
from iresflow.bijections.inverse import Accuracy, Inverse
from iresflow.errors import DerivativeError
from iresflow.lipschitz import Branch
from iresflow.lipschitz.passes.chain import Chain
from iresflow.lipschitz.passes.rounding import RoundedChain, fused_solve
from iresflow.logdet import TRAINING, LogDetEstimator
from iresflow.solvers import attach, solve
from iresflow.tensors import transformed, wide_norm

__all__ = ["BranchBlock", "Contraction"]

Contraction = tuple[Chain, list[RoundedChain]]
"""g with its certified bound, and g in the type of its weights and in the widest one."""


class BranchBlock(Bijection):
    r"""A block whose invertibility follows from :math:`\operatorname{Lip}(g) < 1`.

    Arguments:
        branch: g.
        log_det: The estimator that is used when `forward` is given none.

    Attributes:
        name: What errors call the block; a flow sets it to the block's place.
    """

    kind: ClassVar[str] = "residual"
    """What a certificate calls it."""

    def __init__(self, branch: Branch, log_det: LogDetEstimator | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.log_det = log_det or TRAINING
        self.name = "a residual block"

    def sharpen(self) -> None:
        """Makes the norms that the next training step starts from settled ones.

        A branch of one layer has no slack: where its norm is underestimated, it may expand.
        """
        self.branch.sharpen()

    def contraction(self, context: Tensor | None) -> Contraction:
        """The branch for a solve, see `Branch.contraction`; contractive if it can be made so.

        In training mode with gradients on, one step of the iteration normalises the weights for
        the whole solve, or as many as make the block contractive.
        """
        chain, maps = self.branch.contraction(context)
        if self.training and torch.is_grad_enabled() and not (chain.lipschitz or 0.0) < 1:
            # A training step's norms lag behind the weights.
            self.sharpen()
            chain, maps = self.branch.contraction(context)
        return chain, maps

    def invert(
        self,
        z: Tensor,
        context: Tensor | None = None,
        accuracy: Accuracy | None = None,
        *,
        contraction: Contraction | None = None,
    ) -> Inverse:
        """The solution x of x + g(x) = z with its certified error; arguments as of any bijection.

        Arguments:
            z: ``(B, *event)``.
            context: ``(B, context_dim)`` or None.
            accuracy: How exact x is to be.
            contraction: g, where it is not what `contraction` gives.
        """
        with own_arithmetic():
            accuracy = accuracy or Accuracy()
            chain, maps = contraction or self.contraction(context)
            if transformed():
                raise DerivativeError(
                    "an inverse is an iteration, which no transform of torch.func goes through: "
                    "use torch.autograd, by which its derivatives of any order are right"
                )
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
                fused=partial(fused_solve, maps),
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
