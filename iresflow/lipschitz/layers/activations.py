r"""Activations with their first two derivatives and their exact Lipschitz constants.

Each acts on single entries; a *concatenated* one gives several values for each entry, one block of
channels behind the other: (B, C, ...) becomes (B, width C, ...).

A flow needs :math:`\phi \in C^1` for a log-determinant, and the fused backward pass of
`iresflow.lipschitz.passes.chain` needs :math:`\phi''`; so ReLU is not here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "ELU", "Activation", "CLipSwish", "LipSwish", "Softplus", "Tanh"]


class Activation(nn.Module, ABC):
    r"""A pointwise map :math:`\phi` with derivatives in closed form.

    An activation may have one trainable slope :math:`\beta > 0`, in the family
    :math:`\phi_\beta(h) = \phi_1(\beta h) / \beta`. Its derivative then takes the same values for
    every :math:`\beta`, so the Lipschitz constant does not move in training.
    """

    lipschitz: ClassVar[float]
    """The Euclidean Lipschitz constant, rounded upwards: the supremum of the absolute derivative
    for one value an entry."""

    width: ClassVar[int] = 1
    """Values for each entry."""

    constants: ClassVar[Mapping[float, float]] = {}
    """Lipschitz constants in other p-norms than the Euclidean, by p, where they differ from it."""

    def lipschitz_in(self, norm: float) -> float:
        """The Lipschitz constant in a p-norm of domain and range, rounded upwards."""
        return self.constants.get(norm, self.lipschitz)

    def beta(self) -> Tensor | None:
        """The trainable slope, a positive scalar, or None."""
        return None

    @staticmethod
    @abstractmethod
    def value_and_slope(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        r""":math:`\phi(h)` and :math:`\phi'(h)`, ``(B, width C, ...)`` for h ``(B, C, ...)``."""

    @staticmethod
    @abstractmethod
    def jet(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`\phi(h)`, :math:`\phi'(h)` and :math:`\phi''(h)`."""

    @abstractmethod
    def forward(self, h: Tensor) -> Tensor: ...


@final
class ELU(Activation):
    """Exponential linear unit (Clevert et al., 2016), the thesis' choice."""

    lipschitz = 1.0

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.elu(h)

    @staticmethod
    def value_and_slope(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        slope = h.clamp(max=0).exp()
        return torch.where(h > 0, h, slope - 1), slope

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, slope = ELU.value_and_slope(h, beta)
        return value, slope, torch.where(h > 0, torch.zeros_like(h), slope)


@final
class Tanh(Activation):
    """Hyperbolic tangent."""

    lipschitz = 1.0

    def forward(self, h: Tensor) -> Tensor:
        return h.tanh()

    @staticmethod
    def value_and_slope(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        value = h.tanh()
        return value, 1 - value.square()

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, slope = Tanh.value_and_slope(h, beta)
        return value, slope, -2 * value * slope


@final
class Softplus(Activation):
    """Softplus, :math:`\\log(1 + e^h)`."""

    lipschitz = 1.0

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.softplus(h, threshold=40)

    @staticmethod
    def value_and_slope(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        # torch's own threshold, 20, is off by 2e-9 in float64, which is far from rounding.
        return nn.functional.softplus(h, threshold=40), h.sigmoid()

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, slope = Softplus.value_and_slope(h, beta)
        return value, slope, slope * (1 - slope)


@final
class LipSwish(Activation):
    r"""LipSwish, :math:`h \sigma(\beta h) / 1.1` with trainable :math:`\beta > 0`.

    The supremum of the swish's derivative is 1.0998393201..., attained at
    :math:`\beta h = 2.399357...`, the root of :math:`2 + u (1 - 2\sigma(u)) = 0`. Divided by 1.1
    it is below one, and the product bound uses the exact quotient.

    References:
        Residual Flows for Invertible Generative Modeling (Chen et al., 2019), section 3.3.
        https://arxiv.org/abs/1906.02735
    """

    lipschitz = 1.09983932013 / 1.1

    def __init__(self) -> None:
        super().__init__()
        # softplus(raw) = 0.97 at the start, as softplus(0.5) is in the paper's code.
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def beta(self) -> Tensor:
        return nn.functional.softplus(self.raw_beta)

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.sigmoid(self.beta() * h) / 1.1

    @staticmethod
    def value_and_slope(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        return _swish_and_slope(h, beta, 1.1)

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return _swish_jet(h, beta, 1.1)


@final
class CLipSwish(Activation):
    r"""Concatenated LipSwish, :math:`(\phi(h), \phi(-h)) / 1.004` with :math:`\phi` LipSwish.

    With s the swish, :math:`s'(u) + s'(-u) = 1`, so the squared slope of the pair,
    :math:`s'(u)^2 + (1 - s'(u))^2`, is convex in :math:`s'(u)` and largest at the extrema of
    :math:`s'`, which are M = 1.09983932012887 (see `LipSwish`) and 1 - M. The constant of
    :math:`(\phi(h), \phi(-h))` is thus :math:`\sqrt{M^2 + (M - 1)^2} / 1.1 = 1.00396504003262`,
    and over 1.004 it is below one. In the maximum norm the constant is M / 1.1 over 1.004, and in
    the 1-norm (2 M - 1) / 1.1 over 1.004.

    References:
        Invertible DenseNets with Concatenated LipSwish (Perugachi-Diaz et al., 2021), which
        divides by 1.004 too. https://arxiv.org/abs/2102.02694
    """

    lipschitz = 1.00396504004 / 1.004
    width = 2
    constants: ClassVar[Mapping[float, float]] = {
        1.0: (2 * 1.09983932013 - 1) / (1.1 * 1.004),
        math.inf: 1.09983932013 / (1.1 * 1.004),
    }

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))  # as in `LipSwish`

    def beta(self) -> Tensor:
        return nn.functional.softplus(self.raw_beta)

    def forward(self, h: Tensor) -> Tensor:
        beta = self.beta()
        both = [h * torch.sigmoid(beta * h), -h * torch.sigmoid(-beta * h)]
        return torch.cat(both, dim=1) / (1.1 * 1.004)

    # As s(-u) = s(u) - u, the second half costs one subtraction.

    @staticmethod
    def value_and_slope(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        value, slope = _swish_and_slope(h, beta, 1.1 * 1.004)
        return _with_mirror(value, h), _with_mirror(slope, torch.ones_like(h))

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, slope, curvature = _swish_jet(h, beta, 1.1 * 1.004)
        mirrored = _with_mirror(value, h), _with_mirror(slope, torch.ones_like(h))
        return *mirrored, torch.cat([curvature, curvature], dim=1)


def _with_mirror(part: Tensor, excess: Tensor) -> Tensor:
    """A function of h and its counterpart of -h, which is less by a part of the other."""
    return torch.cat([part, torch.sub(part, excess, alpha=1 / (1.1 * 1.004))], dim=1)


def _swish_and_slope(h: Tensor, beta: Tensor | None, divisor: float) -> tuple[Tensor, Tensor]:
    """The swish h s with s = sigmoid(beta h) and its slope, over a divisor, in few passes."""
    # (h s)' = s + beta h s (1 - s) = s (1 + beta h (1 - s)).
    scaled = h * beta
    gate = scaled.sigmoid()
    value = (h * gate).div_(divisor)
    slope = torch.addcmul(scaled, scaled, gate, value=-1).add_(1).mul_(gate).div_(divisor)
    return value, slope


def _swish_jet(h: Tensor, beta: Tensor | None, divisor: float) -> tuple[Tensor, Tensor, Tensor]:
    # (h s)'' = beta s (1 - s) (2 + beta h (1 - 2 s)).
    scaled = h * beta
    gate = scaled.sigmoid()
    value = (h * gate).div_(divisor)
    rest = torch.addcmul(gate, gate, gate, value=-1)  # s (1 - s)
    slope = torch.addcmul(gate, scaled, rest).div_(divisor)
    curvature = torch.addcmul(scaled, scaled, gate, value=-2).add_(2).mul_(rest)
    return value, slope, curvature.mul_(beta / divisor)


ACTIVATIONS: dict[str, type[Activation]] = {
    "clipswish": CLipSwish,
    "elu": ELU,
    "lipswish": LipSwish,
    "softplus": Softplus,
    "tanh": Tanh,
}
"""The activations by the names that configurations use."""
