r"""Log-determinants of branches that are narrow inside, by the determinant lemma.

A branch of two dense layers without an activation in front, :math:`g(x) = A_2 \phi(A_1 x)`, has
the Jacobian :math:`A_2 D A_1`, whose rank is at most the width n in between, and
:math:`\det(I + A_2 D A_1) = \det(I + A_1 A_2 D)`: n x n instead of the square of the dimension
(Sylvester's identity, as in planar and Sylvester flows, van den Berg et al., 2018,
https://arxiv.org/abs/1803.05649).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from iresflow.lipschitz.passes.links import Link
from iresflow.powers import Determinant
from iresflow.tensors import linear

__all__ = ["low_rank_determinant"]


def low_rank_determinant(links: Sequence[Link], x: Tensor) -> Determinant | None:
    """Of I + J at points ``(B, D)``, by operations that autograd records.

    Returns:
        The determinant; None where the chain is not of that form, or not narrower than D.
    """
    if len(links) != 2 or links[0].activation is not None or x.ndim != 2:
        return None
    first, second = links
    phi, width = second.activation, len(first.weight)
    if phi is None or width >= x.shape[1]:
        return None
    slope = phi.jet(first.affine(x), second.beta, 1)[1]
    blocks = (phi.width, width)  # of an activation with several values for each entry
    weight = second.weight.unflatten(1, blocks) * slope.unflatten(1, blocks)[:, None]
    outer = weight.sum(2)  # (B, D, n), the second layer times the slopes
    identity = torch.eye(width, dtype=outer.dtype, device=outer.device)
    product = linear(outer.mT.flatten(0, 1), first.weight).view(-1, width, width)  # transposed
    sign, value = torch.linalg.slogdet(identity + product)
    with torch.no_grad():
        squares = ((outer.mT @ outer @ first.weight) * first.weight).sum(1)
        longest = squares.clamp_min(0).sqrt().amax(1)
    return Determinant(value.masked_fill(sign <= 0, torch.nan), longest)
