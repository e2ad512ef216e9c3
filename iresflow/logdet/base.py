"""What an estimator of a log-determinant takes and gives."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from iresflow.linearization import Linearization

__all__ = ["LogDetEstimate", "LogDetEstimator"]


@final
@dataclass(frozen=True)
class LogDetEstimate:
    r"""An estimate of :math:`\log\det(I + J)` for each sample of a batch.

    Attributes:
        value: ``(B,)`` nats, without a graph. The only number that may be logged or summed into a
            likelihood.
        surrogate: ``(B,)``, whose *gradient* estimates that of the log-determinant. Its own value
            means nothing.
        variance: ``(B,)`` squared nats: the squared standard error of `value` over its probes.
            NaN where one probe tells nothing of it, zero where there are no probes.
        tail: ``(B,)``, what `tail_order` turns into a truncation bound; zero where nothing is cut.
        tail_order: The number n of series terms that were kept.
    """

    value: Tensor
    surrogate: Tensor
    variance: Tensor
    tail: Tensor
    tail_order: int

    @property
    def log_det(self) -> Tensor:
        """`value` in the forward pass, the gradient of `surrogate` in the backward pass."""
        if not self.surrogate.requires_grad:
            return self.value
        return self.value + (self.surrogate - self.surrogate.detach())

    def truncation_bound(self, lipschitz: float) -> Tensor:
        r"""Upper bound, ``(B,)`` nats, of what truncation cut off from this very estimate.

        For a probe v and :math:`u = (J^\top)^{n-1} v`, term n + j of the series is
        :math:`\pm u^\top J^j (J v) / (n + j)`, so that with :math:`\|J\| \le L < 1` the remainder
        is at most :math:`\|u\| \|J v\| \sum_{j \ge 1} L^j / (n + j)`. This is the argument of
        Theorem 5.8 of the thesis with measured norms in place of their worst case
        :math:`L^n \|v\|^2`. `tail` holds the mean over probes of :math:`\|u\| \|J v\|`.

        Arguments:
            lipschitz: A certified upper bound L of the branch's Lipschitz constant.

        Raises:
            ValueError: lipschitz is not in [0, 1).
        """
        return self.tail * _tail_sum(lipschitz, self.tail_order)


class LogDetEstimator(ABC):
    """Estimates :math:`\\log\\det(I + J)` from products with J.

    A subclass is a frozen dataclass of its settings, so it can be compared, printed and stored.
    """

    kind: ClassVar[Literal["exact", "biased", "unbiased"]]

    @abstractmethod
    def __call__(
        self, linearization: Linearization, generator: torch.Generator | None = None
    ) -> LogDetEstimate:
        """The estimate at the linearization's points; the generator draws the probes."""


def _tail_sum(lipschitz: float, order: int) -> float:
    """The sum over j >= 1 of L^j / (order + j), from above."""
    if not 0 <= lipschitz < 1:
        raise ValueError(f"a truncation bound needs a Lipschitz bound in [0, 1), got {lipschitz}")
    total, power, j = 0.0, 1.0, 0
    while True:
        j += 1
        power *= lipschitz
        total += power / (order + j)
        # What is left is at most a geometric series with the next denominator.
        rest = power * lipschitz / ((order + j + 1) * (1 - lipschitz))
        if rest <= 1e-9 * total or j == 100_000:
            return total + rest
