r"""Activations with their first two derivatives and their exact Lipschitz constants.

A flow needs :math:`\phi \in C^1` for a log-determinant, and the fused backward pass of
`iresflow.lipschitz.chain` needs :math:`\phi''`; so ReLU is not here.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "ELU", "Activation", "LipSwish", "Softplus", "Tanh"]


class Activation(nn.Module, ABC):
    r"""A pointwise map :math:`\phi` with derivatives in closed form.

    An activation may have one trainable slope :math:`\beta > 0`, in the family
    :math:`\phi_\beta(h) = \phi_1(\beta h) / \beta`. Its derivative then takes the same values for
    every :math:`\beta`, so the Lipschitz constant does not move in training.
    """

    lipschitz: ClassVar[float]
    """The supremum of the absolute derivative, rounded upwards."""

    def beta(self) -> Tensor | None:
        """The trainable slope, a positive scalar, or None."""
        return None

    @abstractmethod
    def value_and_slope(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        r""":math:`\phi(h)` and :math:`\phi'(h)`, each of the shape of h."""

    @abstractmethod
    def jet(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`\phi(h)`, :math:`\phi'(h)` and :math:`\phi''(h)`."""

    @abstractmethod
    def forward(self, h: Tensor) -> Tensor: ...


@final
class ELU(Activation):
    """Exponential linear unit (Clevert et al., 2016), the thesis' choice."""

    lipschitz = 1.0

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.elu(h)

    def value_and_slope(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        slope = h.clamp(max=0).exp()
        return torch.where(h > 0, h, slope - 1), slope

    def jet(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, slope = self.value_and_slope(h, beta)
        return value, slope, torch.where(h > 0, torch.zeros_like(h), slope)


@final
class Tanh(Activation):
    """Hyperbolic tangent."""

    lipschitz = 1.0

    def forward(self, h: Tensor) -> Tensor:
        return h.tanh()

    def value_and_slope(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        value = h.tanh()
        return value, 1 - value.square()

    def jet(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, slope = self.value_and_slope(h, beta)
        return value, slope, -2 * value * slope


@final
class Softplus(Activation):
    """Softplus, :math:`\\log(1 + e^h)`."""

    lipschitz = 1.0

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.softplus(h, threshold=40)

    def value_and_slope(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        # torch's own threshold, 20, is off by 2e-9 in float64, which is far from rounding.
        return nn.functional.softplus(h, threshold=40), h.sigmoid()

    def jet(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        value, slope = self.value_and_slope(h, beta)
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

    def value_and_slope(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
        # phi = h s / 1.1 and phi' = (s + beta h s (1 - s)) / 1.1, s = sigmoid(beta h), in few
        # passes over memory: phi' = s (1 + beta h (1 - s)) / 1.1.
        scaled = h * beta
        gate = scaled.sigmoid()
        value = (h * gate).div_(1.1)
        slope = torch.addcmul(scaled, scaled, gate, value=-1).add_(1).mul_(gate).div_(1.1)
        return value, slope

    def jet(self, h: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        # phi'' = beta s (1 - s) (2 + beta h (1 - 2 s)) / 1.1.
        scaled = h * beta
        gate = scaled.sigmoid()
        value = (h * gate).div_(1.1)
        rest = torch.addcmul(gate, gate, gate, value=-1)  # s (1 - s)
        slope = torch.addcmul(gate, scaled, rest).div_(1.1)
        curvature = torch.addcmul(scaled, scaled, gate, value=-2).add_(2).mul_(rest)
        return value, slope, curvature.mul_(beta / 1.1)


ACTIVATIONS: dict[str, type[Activation]] = {
    "elu": ELU,
    "lipswish": LipSwish,
    "softplus": Softplus,
    "tanh": Tanh,
}
"""The activations by the names that configurations use."""
