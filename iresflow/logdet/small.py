"""The exact log-determinant where it is cheap, and an estimate elsewhere."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from iresflow.linearization import Linearization
from iresflow.logdet.base import Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.exact import Exact, ExactValue
from iresflow.streams import Stream

__all__ = ["ExactWhereSmall"]


@final
@dataclass(frozen=True)
class ExactWhereSmall(LogDetEstimator):
    """`Exact` for blocks of few dimensions, another estimator for the others.

    In few dimensions a dense Jacobian takes no more than the products of a few probes, whose
    truncation error is to be small. Probes have an error besides, and in few dimensions their
    values are so few that their spread tells little of it.

    The choice depends on the number of dimensions alone, never on the machine: a model's number
    means the same everywhere.

    Arguments:
        otherwise: The estimator in more dimensions.
        limit: The largest dimension for exact log-determinants with exact gradients.
        values: The largest dimension for exact log-determinants at all: between the two the
            gradient is estimated with two probes, see `ExactValue`.

    Raises:
        ValueError: a negative limit.
    """

    otherwise: LogDetEstimator
    limit: int = 32
    values: int = 64
    kind: ClassVar[Kind] = "biased"

    def __post_init__(self) -> None:
        for name in ("limit", "values"):
            if (limit := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be 0 or more, got {limit}")

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        return self.at(linearization).estimate(linearization, generator)

    def at(self, linearization: Linearization) -> LogDetEstimator:
        dim = math.prod(linearization.point.shape[1:])
        if dim <= self.limit:
            return Exact(self.limit)
        if dim <= self.values:
            return ExactValue(limit=self.values)
        return self.otherwise
