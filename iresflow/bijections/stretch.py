r"""How much an invertible map stretches: bounds of its Lipschitz constants and log-determinant.

The bounds hold at every point, in the Euclidean norm, for the map in real arithmetic. They are
kept as logarithms, since over many blocks the products overflow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import final

__all__ = ["Stretch"]

_EPS = 2.0**-52


@final
@dataclass(frozen=True)
class Stretch:
    r"""Bounds of :math:`\operatorname{Lip}(F)`, :math:`\operatorname{Lip}(F^{-1})` and
    :math:`\log|\det J_F(x)|`; by default those of a map that keeps distances.

    Attributes:
        log_forward: Logarithm of an upper bound of Lip(F).
        log_inverse: Logarithm of an upper bound of the inverse's Lipschitz constant.
        log_det_lower, log_det_upper: Bounds of the log-determinant at every x, in nats.
    """

    log_forward: float = 0.0
    log_inverse: float = 0.0
    log_det_lower: float = 0.0
    log_det_upper: float = 0.0

    def __post_init__(self) -> None:
        # NaN weights have no bounds: what then remains true is said.
        if any(math.isnan(getattr(self, field.name)) for field in fields(self)):
            object.__setattr__(self, "log_forward", math.inf)
            object.__setattr__(self, "log_inverse", math.inf)
            object.__setattr__(self, "log_det_lower", -math.inf)
            object.__setattr__(self, "log_det_upper", math.inf)

    @staticmethod
    def unknown() -> "Stretch":
        """What is true of any bijection."""
        return Stretch(math.inf, math.inf, -math.inf, math.inf)

    @staticmethod
    def residual(lipschitz: float, dim: int) -> "Stretch":
        r"""Of :math:`x + g(x)` on D dimensions, from an upper bound L of Lip(g).

        :math:`\operatorname{Lip}(F) \le 1 + L` and :math:`\operatorname{Lip}(F^{-1}) \le 1 / (1 -
        L)` (thesis, Lemma 4.6); :math:`D \log(1 - L) \le \log|\det J_F| \le D \log(1 + L)` (Lemma
        5.5). For L of 1 and above the inverse and the lower bound are infinite.
        """
        # The allowance is for the rounding of logarithm and product.
        forward = math.log1p(lipschitz) * (1 + 4 * _EPS)
        inverse = -math.log1p(-lipschitz) * (1 + 4 * _EPS) if lipschitz < 1 else math.inf
        return Stretch(forward, inverse, -dim * inverse, dim * forward)

    @staticmethod
    def monotone(lipschitz: float, dim: int) -> "Stretch":
        r"""Of :math:`(I - g)(I + g)^{-1}` on D dimensions, from an upper bound L of Lip(g).

        Both Lipschitz constants are at most :math:`(1 + L) / (1 - L)`, and the log-determinant
        lies within D times the logarithm of that.
        """
        part = Stretch.residual(lipschitz, dim)
        log = part.log_forward + part.log_inverse
        log = math.nextafter(log, math.inf) if log else log
        return Stretch(log, log, -dim * log * (1 + 4 * _EPS), dim * log * (1 + 4 * _EPS))

    @staticmethod
    def diagonal(scales: Sequence[float], copies: int, error: float) -> "Stretch":
        """Of a product of each dimension with a positive number.

        Arguments:
            scales: The numbers.
            copies: Dimensions that each of them multiplies.
            error: Of how they were computed, relative to each.
        """
        if not all(0 < s < math.inf for s in scales):
            return Stretch.unknown()
        logs = [math.log(s) for s in scales]
        # The second term is for the rounding of the logarithm and of the sums.
        slack = [error + 4 * _EPS * (1 + abs(log)) for log in logs]
        lower = [log - s for log, s in zip(logs, slack, strict=True)]
        upper = [log + s for log, s in zip(logs, slack, strict=True)]
        return Stretch(
            max(upper, default=0.0),
            -min(lower, default=0.0),
            copies * math.fsum(lower),
            copies * math.fsum(upper),
        )

    @property
    def forward(self) -> float:
        """Upper bound of Lip(F); infinite where a float can't hold it."""
        return _exp(self.log_forward)

    @property
    def inverse(self) -> float:
        """Upper bound of the inverse's Lipschitz constant; infinite as `forward`."""
        return _exp(self.log_inverse)

    def then(self, later: "Stretch") -> "Stretch":
        """Of the composition: Lipschitz constants multiply, log-determinants add."""
        return Stretch(
            _add(self.log_forward, later.log_forward, math.inf),
            _add(self.log_inverse, later.log_inverse, math.inf),
            _add(self.log_det_lower, later.log_det_lower, -math.inf),
            _add(self.log_det_upper, later.log_det_upper, math.inf),
        )

    def beside_identity(self) -> "Stretch":
        r"""Of :math:`(u, v) \mapsto (u, F(v))`, u not empty.

        :math:`|u - u'|^2 + |F(v) - F(v')|^2 \le \max(1, \operatorname{Lip}(F))^2 |(u, v) - (u',
        v')|^2`, and likewise for the inverse; the Jacobian is block diagonal, so the
        log-determinant stays.
        """
        return Stretch(
            max(0.0, self.log_forward),
            max(0.0, self.log_inverse),
            self.log_det_lower,
            self.log_det_upper,
        )


def _add(a: float, b: float, outward: float) -> float:
    """The sum, one unit in the last place outward where it may have been rounded."""
    return math.nextafter(a + b, outward) if a and b else a + b


def _exp(x: float) -> float:
    # One part in 1e15 is for the rounding of the exponential.
    if x == 0:
        return 1.0
    return math.exp(x) * (1 + 8 * _EPS) if x < 700 else math.inf
