r"""Activations with their first two derivatives and their exact Lipschitz constants.

Each acts on single entries; a *concatenated* one gives several values for each entry, one block of
channels after the other: (B, C, ...) becomes (B, width C, ...).

Each is spelled once, as its *jet*: value, slope and curvature. A flow needs :math:`\phi \in C^1`
for a log-determinant, and the closed-form gradient of `iresflow.lipschitz.passes.chain` needs
:math:`\phi''`; so ReLU is not here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "Activation",
    "CLipSwish",
    "LipSwish",
    "Sine",
    "SineCosine",
    "Softplus",
    "Tanh",
    "activation_named",
]


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

    def start_at(self, beta: float) -> None:
        """Sets the trainable slope, above 0; nothing where there is none."""
        del beta

    @staticmethod
    @abstractmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        r""":math:`\phi(h)` and its first derivatives.

        Arguments:
            h: ``(B, C, ...)``.
            beta: The trainable slope, or None.
            order: 0 for the value, 1 for the slope :math:`\phi'(h)` too, 2 for :math:`\phi''(h)`.

        Returns:
            ``order + 1`` tensors ``(B, width C, ...)``, by operations that autograd records.
        """

    @final  # type: ignore[misc]  # torch declares it as an attribute that may be set
    def forward(self, h: Tensor) -> Tensor:
        return self.jet(h, self.beta(), 0)[0]


@final
class ELU(Activation):
    """Exponential linear unit (Clevert et al., 2016), the thesis' choice."""

    lipschitz = 1.0

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        value = nn.functional.elu(h)
        if order == 0:
            return (value,)
        # At 0 the gradient of clamp differs between versions of PyTorch, and that of relu is 0.
        slope = (-(-h).relu()).exp()
        return (value, slope, slope * (h < 0))[: order + 1]


@final
class Tanh(Activation):
    """Hyperbolic tangent."""

    lipschitz = 1.0

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        value = h.tanh()
        if order == 0:
            return (value,)
        slope = 1 - value.square()
        return (value, slope, -2 * value * slope)[: order + 1]


@final
class Softplus(Activation):
    """Softplus, :math:`\\log(1 + e^h)`."""

    lipschitz = 1.0

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        # torch's own threshold, 20, is off by 2e-9 in float64, which is far from rounding.
        value = nn.functional.softplus(h, threshold=40)
        if order == 0:
            return (value,)
        slope = h.sigmoid()
        return (value, slope, slope * (1 - slope))[: order + 1]


class _Sloped(Activation):
    """With a trainable slope."""

    def __init__(self) -> None:
        super().__init__()
        # softplus(raw) = 0.97, as softplus(0.5) of LipSwish in the code of Residual Flows.
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def beta(self) -> Tensor:
        return nn.functional.softplus(self.raw_beta)

    @torch.no_grad()
    def start_at(self, beta: float) -> None:
        self.raw_beta.fill_(beta + math.log(-math.expm1(-beta)))  # the inverse of softplus


@final
class LipSwish(_Sloped):
    r"""LipSwish, :math:`h \sigma(\beta h) / 1.1` with trainable :math:`\beta > 0`.

    The supremum of the swish's derivative is 1.0998393201..., attained at
    :math:`\beta h = 2.399357...`, the root of :math:`2 + u (1 - 2\sigma(u)) = 0`. Divided by 1.1
    it is below one, and the product bound uses the exact quotient.

    References:
        Residual Flows for Invertible Generative Modeling (Chen et al., 2019), section 3.3.
        https://arxiv.org/abs/1906.02735
    """

    lipschitz = 1.09983932013 / 1.1

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        return _swish(h, beta, order, 1.1)


@final
class CLipSwish(_Sloped):
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

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        # With s the swish, s(-u) = s(u) - u: the second half costs one subtraction.
        jet = _swish(h, beta, order, 1.1 * 1.004)
        halves = [torch.cat([jet[0], torch.sub(jet[0], h, alpha=1 / (1.1 * 1.004))], dim=1)]
        if order > 0:
            halves.append(torch.cat([jet[1], jet[1] - 1 / (1.1 * 1.004)], dim=1))
        if order > 1:
            halves.append(torch.cat([jet[2], jet[2]], dim=1))
        return tuple(halves)


@final
class Sine(_Sloped):
    r"""The sine, :math:`\sin(\beta h) / \beta` with trainable frequency :math:`\beta > 0`.

    Its slope at 0 is its constant, 1, as those of tanh and ELU are, and it does not saturate.

    References:
        Implicit Neural Representations with Periodic Activation Functions (Sitzmann et al., 2020).
        https://arxiv.org/abs/2006.09661
    """

    lipschitz = 1.0

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        assert beta is not None
        scaled = h * beta
        sine = scaled.sin()
        jet = [sine / beta]
        if order > 0:
            jet.append(scaled.cos())
        if order > 1:
            jet.append(-beta * sine)
        return tuple(jet)


@final
class SineCosine(_Sloped):
    r"""Sine and cosine, :math:`(\sin \beta h, \cos \beta h - 1) / \beta` with trainable
    frequency :math:`\beta > 0`.

    Its slope vector :math:`(\cos \beta h, -\sin \beta h)` has the Euclidean norm 1 at every
    h: 1-Lipschitz, smooth, and no gain is lost anywhere. In the maximum norm the constant is 1
    too, in the 1-norm :math:`\sqrt 2`. The cosine less 1 is written
    :math:`-2 \sin^2(\beta h / 2)`, which keeps its digits near 0.
    """

    lipschitz = 1.0
    width = 2
    constants: ClassVar[Mapping[float, float]] = {1.0: math.nextafter(math.sqrt(2), 2)}

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        assert beta is not None
        half = h * (beta / 2)
        s, c = half.sin(), half.cos()
        sine, rest = 2 * s * c, 2 * s * s  # of the whole angle, and 1 minus its cosine
        halves = [torch.cat([sine / beta, -rest / beta], dim=1)]
        if order > 0:
            halves.append(torch.cat([1 - rest, -sine], dim=1))
        if order > 1:
            halves.append(torch.cat([-beta * sine, beta * (rest - 1)], dim=1))
        return tuple(halves)


def _swish(h: Tensor, beta: Tensor | None, order: int, divisor: float) -> tuple[Tensor, ...]:
    """The jet of the swish h s with s = sigmoid(beta h), over a divisor, in few passes."""
    assert beta is not None
    scaled = h * beta
    gate = scaled.sigmoid()
    value = (h * gate).div_(divisor)
    if order == 0:
        return (value,)
    # (h s)' = s + beta h s (1 - s), and (h s)'' = beta s (1 - s) (2 + beta h (1 - 2 s)).
    rest = torch.addcmul(gate, gate, gate, value=-1)  # s (1 - s)
    slope = torch.addcmul(gate, scaled, rest).div_(divisor)
    if order == 1:
        return value, slope
    curvature = torch.addcmul(scaled, scaled, gate, value=-2).add_(2).mul_(rest)
    return value, slope, curvature.mul_(beta / divisor)


ACTIVATIONS: dict[str, type[Activation]] = {
    "clipswish": CLipSwish,
    "elu": ELU,
    "lipswish": LipSwish,
    "sine": Sine,
    "sine-cosine": SineCosine,
    "softplus": Softplus,
    "tanh": Tanh,
}
"""The activations by the names that configurations use."""


def activation_named(name: str) -> type[Activation]:
    """One of `ACTIVATIONS`, or a ValueError that names them all."""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"unknown activation {name!r}; choose one of {known}")
    return ACTIVATIONS[name]
