"""What is proven of one residual block."""

import math
from dataclasses import dataclass
from typing import final

from iresflow.bijections.stretch import Stretch
from iresflow.lipschitz import Bound

__all__ = ["BlockCertificate"]

KINDS = {"residual": Stretch.residual, "monotone": Stretch.monotone}
"""How much a block of each kind stretches, from L and the dimension."""


@final
@dataclass(frozen=True)
class BlockCertificate:
    """What is certified of one residual or monotone block.

    Attributes:
        name: The block's place in the model.
        bound: Of the Lipschitz constant L of its branch.
        dim: The dimension of what the block acts on.
        kind: ``residual`` or ``monotone``.

    Raises:
        ValueError: another kind.
    """

    name: str
    bound: Bound
    dim: int
    kind: str = "residual"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a block is one of {', '.join(KINDS)}, got {self.kind!r}")

    @property
    def stretch(self) -> Stretch:
        """Bounds of the block's Lipschitz constants and log-determinant (Lemmas 4.6 and 5.5)."""
        return KINDS[self.kind](self.bound.upper, self.dim)

    @property
    def forward_lipschitz(self) -> float:
        """Lipschitz bound of the block, 1 + L (thesis, Lemma 4.6); of a monotone one,
        (1 + L) / (1 - L)."""
        if self.kind == "residual":
            return 1 + self.bound.upper
        return (1 + self.bound.upper) * self._amplification

    @property
    def inverse_lipschitz(self) -> float:
        """Lipschitz bound of the block's inverse, 1 / (1 - L) (thesis, Lemma 4.6); of a monotone
        one, (1 + L) / (1 - L)."""
        if self.kind == "residual":
            return self._amplification
        return (1 + self.bound.upper) * self._amplification

    @property
    def _amplification(self) -> float:
        upper = self.bound.upper
        return 1 / (1 - upper) if upper < 1 else math.inf

    def steps(self, tol: float, first_step: float = 1.0) -> int | None:
        r"""Fixed-point steps that reach an error of at most tol, in the worst case.

        The smallest k with :math:`L^k / (1 - L) |x_1 - x_0| \le` tol (thesis, Lemma 4.5), where
        :math:`|x_1 - x_0| = |g(y)|` for the start at y. None for L of 1 and above.

        Arguments:
            tol: Largest Euclidean error, above 0.
            first_step: :math:`|x_1 - x_0|`; with 1, tol is relative to it.

        Raises:
            ValueError: tol is not above 0, or first_step is negative.
        """
        if not (tol > 0 and first_step >= 0):
            raise ValueError(
                f"tol must be above 0 and first_step 0 or more, got {tol} and {first_step}"
            )
        upper = self.bound.upper
        if not upper < 1:
            return None
        allowed = tol * (1 - upper)
        if first_step <= allowed:
            return 0
        if upper == 0:
            return 1
        # The quotient of logarithms may round to the wrong side of an integer.
        k = max(1, math.ceil(math.log(allowed / first_step) / math.log(upper)) - 1)
        while upper**k * first_step > allowed:
            k += 1
        return k
