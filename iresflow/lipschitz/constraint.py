"""A certified norm for the layers of anybody's network, as a parametrization of PyTorch."""

import math
from collections.abc import Iterable
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from iresflow.ambient import own_arithmetic
from iresflow.errors import DerivativeError, NotContractiveError
from iresflow.linearization import first_order
from iresflow.lipschitz.bounds.modules import check_finite, operator_of
from iresflow.lipschitz.bounds.operators import ModuleOperator
from iresflow.lipschitz.layers.base import SECOND
from iresflow.lipschitz.layers.normalization import Bidiagonalization, Normalization
from iresflow.lipschitz.layers.watch import Watch, outside_transforms
from iresflow.tensors import transformed

__all__ = ["NormLimit", "constrain"]

M = TypeVar("M", bound=nn.Module)

TRIES = 10
"""How often a weight is shrunk, at most, until its bound is met: rounding alone is in the way."""


def constrain(
    module: M,
    coeff: float,
    image_size: int | Iterable[int] | None = None,
    normalization: Normalization | None = None,
) -> M:
    r"""Holds the norm of a linear layer of PyTorch at or below a limit c.

    The weight that acts is :math:`W \min(1, c / \sigma)` (thesis, eq. 4.9). In training mode
    :math:`\sigma` is an estimate of the norm of W, through which the gradient flows; each forward
    pass with gradients moves it on. In eval mode it is a certified bound, so that
    ``norm_bound(module, image_size).upper <= coeff``; it is computed when the weight is first
    asked for after it has changed, and constant in derivatives.

    The raw weight is the parameter ``parametrizations.weight.original``.
    ``torch.nn.utils.parametrize.remove_parametrizations(module, "weight")`` leaves the weight that
    acts at the time: call ``eval()`` before, for one that is certified.

    Arguments:
        module: A layer that `norm_bound` takes.
        coeff: The limit c, a positive number.
        image_size: As in `norm_bound`.
        normalization: What training divides by: `Bidiagonalization` by default; `Certified` for a
            bound that holds in each training step, too.

    Returns:
        The module itself.

    Raises:
        ValueError: as `norm_bound`; coeff is not positive; or the module is constrained already.
        NotContractiveError: in eval mode, where the weight's type of float can't meet the limit.
        DerivativeError: second derivatives in weights through the norm in training mode.
    """
    if isinstance(coeff, str) or not 0 < coeff < math.inf:
        raise ValueError(f"coeff must be positive and finite, got {coeff}")
    family = operator_of(module, image_size)
    if parametrize.is_parametrized(module, "weight"):
        parametrizations: Any = module.parametrizations
        if any(isinstance(one, NormLimit) for one in parametrizations.weight):
            raise ValueError(f"{type(module).__name__} has a limit of its norm already")
    weight: Any = module.weight
    check_finite(module, weight)
    limit = NormLimit(family, float(coeff), normalization or Bidiagonalization(), weight.detach())
    parametrize.register_parametrization(module, "weight", limit.train(module.training))
    return module


@final
class NormLimit(nn.Module):
    """Multiplies a weight so that the norm of its operator is at most a limit.

    Arguments:
        family: The operator of each weight.
        coeff: The limit.
        normalization: What training divides by.
        weight: Where the estimate starts.
    """

    def __init__(
        self, family: ModuleOperator, coeff: float, normalization: Normalization, weight: Tensor
    ) -> None:
        super().__init__()
        self.family = family
        self.coeff = coeff
        self.normalization = normalization
        self.left: Tensor
        self.register_buffer("left", family.start(weight))
        with torch.no_grad(), own_arithmetic():
            normalization.settled(family, weight, self.left)
        self._certified: tuple[float, Watch] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return weight * self._certified_scale(weight)
        moves = torch.is_grad_enabled()
        with own_arithmetic():
            left = self.left if moves else self.left.clone()
            norm = self.normalization.norm(self.family, weight, left).to(weight.dtype)
        if not transformed():
            norm = first_order(norm, DerivativeError(SECOND))
        return weight * (self.coeff / norm.clamp_min(self.coeff))

    def _certified_scale(self, weight: Tensor) -> float:
        """What to multiply by, from a bound of the very weight that results."""
        if self._certified is None or not self._certified[1].unchanged(weight):
            with outside_transforms():
                self._certified = (self._scale(weight.detach()), Watch(weight))
        return self._certified[0]

    def _scale(self, weight: Tensor) -> float:
        check_finite(self, weight)
        # As in `norm_bound`, whose bound of the same weight is the same number.
        scale, start = 1.0, self.family.start(weight)
        for _ in range(TRIES):
            upper = self.family.tight_bound(weight * scale, start).upper
            if upper <= self.coeff:
                return scale
            # Rounding to the type of the weight may add as much as its last digit.
            scale *= self.coeff / upper * (1 - torch.finfo(weight.dtype).eps / 4)
        raise NotContractiveError(
            f"the norm of a weight of shape {tuple(weight.shape)} in {weight.dtype} could not be "
            f"brought to {self.coeff}; it is at {upper:.6g}"
        )

    def extra_repr(self) -> str:
        return f"coeff={self.coeff}, {self.normalization}"
