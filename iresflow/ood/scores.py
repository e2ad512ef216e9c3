"""Scores of samples with their error bars, and what these decide."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from torch import Tensor

from iresflow.errors import NonFiniteError
from iresflow.models.likelihood import student_quantile

__all__ = ["Decisions", "Scores", "require_numbers"]

ROUNDING = 1e-9
"""Of a share times a number of samples."""


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of B samples with their error bars.

    Attributes:
        values: ``(B,)`` float64, larger the more outlying; infinite where the density is 0.
        low, high: ``(B,)``, the ends of the error bars: the exact score lies between them, with
            the probability that was asked for. Both are the score where it is infinite.
    """

    values: Tensor
    low: Tensor
    high: Tensor

    @property
    def errors(self) -> Tensor:
        """The longer side of each error bar ``(B,)``; 0 where the score is infinite."""
        sides = torch.maximum(self.values - self.low, self.high - self.values)
        return torch.where(self.values.isinf(), 0.0, sides)

    def threshold(self, exceeded: float = 0.05) -> float:
        """A score that at most a share of these samples exceed: the smallest one of theirs.

        Arguments:
            exceeded: The share, in [0, 1).

        Raises:
            ValueError: it is out of range.
        """
        if not 0 <= exceeded < 1:
            raise ValueError(f"the share exceeded must lie in [0, 1), got {exceeded}")
        above = math.floor(exceeded * len(self.values) + ROUNDING)
        return float(self.values.sort(descending=True).values[above])

    def decide(self, threshold: float) -> "Decisions":
        """Which samples are outlying, which are inside, and which are within their error bars.

        Arguments:
            threshold: Scores above it are of outliers.

        Raises:
            ValueError: the threshold is NaN or no number.
        """
        if not isinstance(threshold, Real | Tensor):
            raise ValueError(f"a threshold is a number, got {threshold!r}")
        threshold = float(threshold)
        if math.isnan(threshold):
            raise ValueError("a threshold of NaN decides nothing")
        return Decisions(self.low > threshold, self.high <= threshold)

    @staticmethod
    def around(values: Tensor, errors: Tensor) -> "Scores":
        """With error bars of equal sides ``(B,)``."""
        errors = torch.where(values.isinf(), 0.0, errors)
        return Scores(values, values - errors, values + errors)

    @staticmethod
    def of_draws(draws: Tensor, bounds: Tensor | float, level: float) -> "Scores":
        """Means over independent draws, with Student's t for their spread.

        Arguments:
            draws: ``(R, B)``; one draw is of what has no randomness.
            bounds: ``(B,)``, what truncation and rounding may have changed on top.
            level: Of the error bars, in (0, 1).
        """
        draws = draws.double()
        values, count = draws.mean(0), len(draws)
        errors = torch.zeros_like(values) + bounds
        if count > 1:
            degrees = torch.full_like(values, count - 1)
            errors = errors + student_quantile(level, degrees) * draws.std(0) / count**0.5
        return Scores.around(values, errors)


@final
@dataclass(frozen=True, eq=False)
class Decisions:
    """What can be said of B samples and a threshold, with the scores' errors.

    Attributes:
        outlying: ``(B,)`` booleans: the whole error bar is above the threshold.
        inside: ``(B,)`` booleans: the whole error bar is at or below it.
    """

    outlying: Tensor
    inside: Tensor

    @property
    def undecided(self) -> Tensor:
        """``(B,)`` booleans: the threshold lies within the error bar; more draws would tell."""
        return ~(self.outlying | self.inside)

    def words(self) -> list[str]:
        """Of each sample: outlying, inside or undecided."""
        pairs = zip(self.outlying.tolist(), self.inside.tolist(), strict=True)
        return [
            "outlying" if out else "inside" if within else "undecided" for out, within in pairs
        ]


def require_numbers(scores: Scores) -> Scores:
    """The scores, or a NonFiniteError where one is NaN."""
    wrong = int(scores.values.isnan().sum())
    if wrong:
        raise NonFiniteError(
            f"{wrong} of {len(scores.values)} scores are NaN: the flow's weights are damaged, or "
            "samples are beyond what floats can hold"
        )
    return scores
