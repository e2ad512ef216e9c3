"""The plain fixed-point iteration."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from iresflow.solvers.base import Proposer, Solver, check_counts

__all__ = ["FixedPoint"]


@final
@dataclass(frozen=True)
class FixedPoint(Solver):
    """x <- y - g(x), from x = y (thesis, Algorithm 1); converges like L^k (Lemma 4.5).

    Arguments:
        max_steps: Evaluations of g after which the driver gives up.

    Raises:
        ValueError: max_steps below 1.
    """

    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_counts(max_steps=self.max_steps)

    def begin(self) -> Proposer:
        return _Plain()

    def mixed(self) -> int:
        return 0


@final
class _Plain(Proposer):
    def propose(
        self, residual: Tensor, move: Tensor | None, change: Tensor | None
    ) -> Tensor | None:
        return None

    def keep(self, rows: Tensor) -> None:
        pass
