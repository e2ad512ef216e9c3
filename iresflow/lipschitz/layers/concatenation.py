r"""Dense concatenation: what a layer makes of its activation stands beside what came in.

A link maps h to :math:`(a h, b W \phi(h))`, with :math:`a^2 + b^2 = 1` trainable and
:math:`|W| \le c`. Its Lipschitz constant is at most :math:`\sqrt{a^2 + b^2 c^2 L^2} \le 1` for an
activation of constant L: to keep what came in costs nothing.

As a link of a chain it is the activation :math:`h \mapsto (h, \phi(h))`, then the block matrix
:math:`\operatorname{diag}(a I, b W)`. The product of *their* constants would be up to
:math:`\sqrt 2`, so the link is bounded as a whole.

References:
    Invertible DenseNets with Concatenated LipSwish (Perugachi-Diaz et al., 2021), section 3, where
    each activation comes after its layer: https://arxiv.org/abs/2102.02694
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from iresflow.lipschitz.bounds.base import EPS, Bound
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.form import Alone, Bounds, Form

__all__ = ["Beside", "Concatenated", "Identity", "beside"]

Sum = Callable[[float, float], float]

_SUMS: Mapping[float, Sum] = {1.0: operator.add, 2.0: math.hypot, math.inf: max}
"""The p-norm of two numbers, by p."""

ROUNDED_UP = 1 + 8 * EPS
"""For the few roundings of a bound in float64."""


class Beside(Activation):
    r""":math:`h \mapsto (h, \phi(h))`: see `beside`.

    Attributes:
        inner: :math:`\phi`.
    """

    inner: Activation

    def beta(self) -> Tensor | None:
        return self.inner.beta()

    def start_at(self, beta: float) -> None:
        self.inner.start_at(beta)


@functools.cache
def beside(phi: type[Activation] | None) -> type[Beside]:
    r"""The class of activations :math:`h \mapsto (h, \phi(h))`; of (h, h) where phi is None."""
    inner = phi or Identity
    one, most = (inner.constants.get(p, inner.lipschitz) for p in (1.0, math.inf))

    @final
    class _Beside(Beside):
        lipschitz = math.hypot(1.0, inner.lipschitz) * ROUNDED_UP
        width = 1 + inner.width
        constants: ClassVar[dict[float, float]] = {
            1.0: (1.0 + one) * ROUNDED_UP,
            math.inf: max(1.0, most),
        }

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner()

        @staticmethod
        def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
            pairs = zip(Identity.jet(h, None, order), inner.jet(h, beta, order), strict=True)
            return tuple(torch.cat(pair, dim=1) for pair in pairs)

    _Beside.__name__ = _Beside.__qualname__ = f"Beside{inner.__name__}"
    return _Beside


@final
class Identity(Activation):
    """h itself."""

    lipschitz = 1.0

    @staticmethod
    def jet(h: Tensor, beta: Tensor | None, order: int) -> tuple[Tensor, ...]:
        return (h, torch.ones_like(h), torch.zeros_like(h))[: order + 1]


@final
class Concatenated(nn.Module, Form):
    r"""diag(a I, b W) with a trainable angle of (a, b), at first :math:`\pi / 4`.

    Arguments:
        kept: Channels that I keeps.
    """

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.raw_angle = nn.Parameter(torch.zeros(()))

    @property
    def _angle(self) -> Tensor:
        return self.raw_angle.sigmoid() * (math.pi / 2)

    def outputs(self, own: int) -> int:
        return self.kept + own

    def scaled(self, scale: Tensor) -> Tensor:
        return scale * self._angle.sin()

    def acting(self, weight: Tensor) -> Tensor:
        outputs, inputs, *sides = weight.shape
        identity = torch.eye(self.kept, dtype=weight.dtype, device=weight.device)
        if sides:
            identity = pad(identity[:, :, None, None], [side // 2 for side in sides for _ in "ab"])
        top = [identity * self._angle.cos(), weight.new_zeros(self.kept, inputs, *sides)]
        bottom = [weight.new_zeros(outputs, self.kept, *sides), weight]
        return torch.cat([torch.cat(top, 1), torch.cat(bottom, 1)])

    def bounds(self, own: Bounds) -> Bounds:
        return self._beside(own, dict.fromkeys(_SUMS, max))

    def bounds_after(self, own: Bounds, activation: Activation | None) -> Bounds:
        if not isinstance(activation, Beside):
            return Alone().bounds_after(self.bounds(own), activation)
        return self._beside(Alone().bounds_after(own, activation.inner), _SUMS)

    def _beside(self, own: Bounds, sums: Mapping[float, Sum]) -> Bounds:
        """Of both parts together. What is kept grows from a larger to a smaller p."""
        kept = float(self._angle.detach().cos())
        found = {}
        for (p, q), bound in own.items():
            upper = sums[q](kept, bound.upper) * ROUNDED_UP if q >= p else math.inf
            estimate = sums[q](kept, bound.estimate) if q >= p else 0.0
            found[p, q] = Bound(upper, estimate, bound.method)
        return found
