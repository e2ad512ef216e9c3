"""Balls in which a decision can't change."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["certified_radii"]

ROUNDING = 64.0
"""What is allowed for the rounding of a logit, in units of eps and of the largest one's size."""


def certified_radii(logits: Tensor, stretches: Tensor, lipschitz: float) -> Tensor:
    r"""Radii ``(B,)`` of Euclidean balls around x in which the largest logit stays the largest.

    The smallest of :math:`(f_i - f_j) / (s_{ij} L)` over all j but the decision i (Tsuzuku et al.,
    2018, arXiv:1802.04034, Proposition 1 with the constants of each difference of logits).

    Arguments:
        logits: ``(B, C)`` of x.
        stretches: Lipschitz bounds ``(C, C)`` of logit i minus logit j in the latent.
        lipschitz: L, such a bound of the latent in x.
    """
    best = logits.argmax(1)
    margins = logits.gather(1, best[:, None]) - logits
    rounding = ROUNDING * torch.finfo(logits.dtype).eps * (logits.abs().amax(1, keepdim=True) + 1)
    reach = (stretches.to(logits) * lipschitz)[best]
    # Logits that nothing moves never change places; of those that infinity may, nothing is known.
    radii = (margins - rounding).clamp_min(0) / reach
    own = F.one_hot(best, logits.shape[1]).bool()
    return radii.nan_to_num(nan=0.0, posinf=math.inf).masked_fill(own, math.inf).amin(1)
