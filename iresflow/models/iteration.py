"""Inverses by a given number of plain fixed-point iterations (thesis, Algorithm 1), unchecked.

They show how fast the iteration converges, and that without a Lipschitz limit it need not.
"""

import copy
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.bijections import (
    Accuracy,
    Bijection,
    BranchBlock,
    Inverse,
    LogDet,
    ResidualBlock,
)
from iresflow.models.certified import CertifiedModel, require_latents
from iresflow.models.inversion import RESIDUAL
from iresflow.models.parts.plain import integer
from iresflow.tensors import wide_norm

__all__ = ["CountedInverse", "IteratedInverse", "counted_inverses", "iterate_inverse"]


@final
@dataclass(frozen=True)
class IteratedInverse:
    """What k fixed-point iterations in every block made of latents, for B samples.

    Attributes:
        value: What came out, ``(B, *event)`` as the model's network takes it (with the padded
            channels of a classifier); NaN or infinite where the iteration has left all floats.
        residual: The distance ``(B,)`` from z of the latent that it is mapped to, measured in the
            widest type of float; infinite where that is not finite.
        converged: Whether that is at most 1e-5 in root mean square over the latent, ``(B,)``
            booleans. Where it is not, this is no inverse: the iteration diverges, or needs more
            iterations.
    """

    value: Tensor
    residual: Tensor
    converged: Tensor


@torch.no_grad()
def iterate_inverse(model: CertifiedModel, z: Tensor, iterations: int = 100) -> IteratedInverse:
    """Runs the fixed-point iteration of each block a number of times, whatever its bound.

    100 is what the thesis took, so that no failure is one of too few iterations (section 4.3.1).

    Arguments:
        model: Without a context, such as a classifier, in eval mode.
        z: Latents ``(B, D)``.
        iterations: In each block.

    Raises:
        ValueError: no latents of the model, iterations that are no whole number of 0 or more, or
            blocks that are not residual: theirs is another iteration.
    """
    iterations = integer("iterations", iterations, 0)
    require_latents(z, model.base_dim)
    wide = copy.deepcopy(model).double()
    target = z.double()
    for counter in counted_inverses(wide.bijection):
        counter.iterations = iterations
    y = wide.bijection.invert(target).value
    x = wide.data_map.invert(y).value
    back = wide.bijection.transform(y)
    residual = wide_norm(back - target).nan_to_num(nan=torch.inf)
    return IteratedInverse(x, residual, residual <= RESIDUAL * target.shape[1] ** 0.5)


def counted_inverses(bijection: Bijection) -> "list[CountedInverse]":
    """Replaces the residual blocks inside a bijection by such that count their iterations.

    Raises:
        ValueError: it has blocks of another kind.
    """
    blocks = {n: m for n, m in bijection.named_modules() if isinstance(m, BranchBlock)}
    names = [n for n, module in blocks.items() if isinstance(module, ResidualBlock)]
    for name in blocks.keys() - set(names):
        raise ValueError(
            f"{name} is a {type(blocks[name]).__name__}: fixed-point iterations are counted of "
            "residual blocks"
        )
    counters = []
    for name in names:
        block = bijection.get_submodule(name)
        assert isinstance(block, ResidualBlock)
        counters.append(CountedInverse(block))
        bijection.set_submodule(name, counters[-1])
    return counters


@final
class CountedInverse(Bijection):
    """A residual block whose inverse is a given number of fixed-point iterations, unchecked.

    Attributes:
        iterations: That number.
    """

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block
        self.iterations = 0

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.block(x, context, log_det)

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.block.transform(x, context)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        x = z
        for _ in range(self.iterations):
            x = z - self.block.branch(x, context)
        return Inverse.closed_form(x)
