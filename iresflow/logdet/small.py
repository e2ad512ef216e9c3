"""The exact log-determinant where it is cheap, and an estimate elsewhere."""

from dataclasses import dataclass
from typing import ClassVar, final

from iresflow.linearization import Linearization
from iresflow.logdet.base import Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.exact import Exact
from iresflow.streams import Stream

__all__ = ["ExactWhereSmall"]


@final
@dataclass(frozen=True)
class ExactWhereSmall(LogDetEstimator):
    """`Exact` for blocks of few dimensions, another estimator for the others.

    A dense Jacobian takes one product for each dimension, and a few probes take as many products
    together before their truncation error is small. Probes have an error besides, and in few
    dimensions their values are so few that their spread tells little of it.

    Arguments:
        otherwise: The estimator in more dimensions than the limit.
        limit: The largest dimension for exact log-determinants.

    Raises:
        ValueError: a negative limit.
    """

    otherwise: LogDetEstimator
    limit: int = 32
    kind: ClassVar[Kind] = "biased"

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit must be 0 or more, got {self.limit}")

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        return self.at(linearization).estimate(linearization, generator)

    def at(self, linearization: Linearization) -> LogDetEstimator:
        small = linearization.point[0].numel() <= self.limit
        return Exact(self.limit) if small else self.otherwise
