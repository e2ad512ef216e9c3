"""What a score of outliers is: fitted to samples that are inside, larger the more outlying."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.ambient import full_precision
from iresflow.errors import NonFiniteError
from iresflow.models import Flow, ImageFlow
from iresflow.models.likelihood import student_quantile
from iresflow.ood.samples import batches, checked, narrowed
from iresflow.tensors import widest
from iresflow.training.loop.inputs import Array

__all__ = ["Decisions", "FittedScore", "Measure", "Score", "Scores", "measured", "require_numbers"]

REACH = 0.25
"""Beyond the largest number of a type of float to this power, squares and products of a flow may
overflow: such samples are scored in the widest type."""


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

    def decide(self, threshold: float) -> "Decisions":
        """Which samples are outlying, which are inside, and which are within their error bars.

        Arguments:
            threshold: Scores above it are of outliers.

        Raises:
            ValueError: the threshold is NaN.
        """
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


Measure = Callable[[Flow, Tensor, Tensor | None], Scores]
"""Scores of a batch under a flow: of checked samples, and their contexts or None."""


class Score(ABC):
    """A score that can be fitted. A subclass is a frozen dataclass of its settings."""

    @final
    def fit(self, flow: Flow, x: Array, context: Array | None = None) -> "FittedScore":
        """The score of a flow, fitted to samples that are inside, best ones it was not trained on.

        Arguments:
            flow: In eval mode.
            x: ``(N, *shape)``, integers 0 .. levels - 1 for an `ImageFlow`, floats for others.
            context: Of a conditional flow: ``(N, context_dim)``, or class numbers ``(N,)``.

        Raises:
            ValueError: the flow is in training mode, samples are none, of another size or range or
                not finite, contexts don't fit, or the samples are too few or too alike to be
                fitted to.
            NonFiniteError: the flow gives NaN.
        """
        values, known = checked(flow, x, context)
        return FittedScore(flow, self.prepare(flow, values, known))

    @abstractmethod
    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        """What measures samples, given those that are inside.

        Arguments:
            flow: In eval mode.
            x: ``(N, *shape)``, checked.
            context: ``(N, *context_shape)`` or None.
        """


@final
@dataclass(frozen=True, eq=False)
class FittedScore:
    """A score of a flow's samples: fitted, with an error bar for each.

    The random numbers of a sample (its probes, the noise of an image) are a function of the
    score's seed and of the sample. So it has the same score in any batch, and errors are
    independent between different samples.

    Attributes:
        flow: In eval mode.
        measure: Scores a batch.
    """

    flow: Flow
    measure: Measure

    def scores(self, x: Array, context: Array | None = None) -> Scores:
        """Scores of samples, and their errors.

        Arguments:
            x: ``(B, *shape)``, integers 0 .. levels - 1 for an `ImageFlow`, floats for others.
            context: Of a conditional flow: ``(B, context_dim)``, or class numbers ``(B,)``.

        Raises:
            ValueError: no samples, those of another size or range or not finite, or contexts that
                don't fit.
            NonFiniteError: the flow gives NaN.
            NotContractiveError: a block has no certified Lipschitz bound below 1.
        """
        return measured(self.measure, self.flow, *checked(self.flow, x, context))

    def score(self, x: Array, context: Array | None = None) -> Tensor:
        """``(B,)`` float64, larger the more outlying; arguments and errors as of `scores`."""
        return self.scores(x, context).values

    def errors(self, x: Array, context: Array | None = None) -> Tensor:
        """The longer sides of the scores' error bars ``(B,)``; arguments as of `scores`."""
        return self.scores(x, context).errors

    def decide(self, x: Array, threshold: float, context: Array | None = None) -> Decisions:
        """Which samples are outlying, which are inside, and which are within their error bars.

        Arguments:
            x: Samples, as of `scores`.
            threshold: Scores above it are of outliers.
            context: As of `scores`.

        Raises:
            ValueError: as `scores`, or the threshold is NaN.
        """
        return self.scores(x, context).decide(threshold)


@full_precision()
def measured(measure: Measure, flow: Flow, x: Tensor, context: Tensor | None) -> Scores:
    """Scores of checked samples, batch by batch.

    Raises:
        NonFiniteError: a score is NaN.
    """
    parts = [_of_batch(measure, flow, *batch) for batch in batches(x, context)]
    columns = ([getattr(part, name) for part in parts] for name in ("values", "low", "high"))
    return require_numbers(Scores(*map(torch.cat, columns)))


def require_numbers(scores: Scores) -> Scores:
    """The scores, or a NonFiniteError where one is NaN."""
    wrong = int(scores.values.isnan().sum())
    if wrong:
        raise NonFiniteError(
            f"{wrong} of {len(scores.values)} scores are NaN: the flow's weights are damaged, or "
            "samples are beyond what floats can hold"
        )
    return scores


def _of_batch(measure: Measure, flow: Flow, x: Tensor, context: Tensor | None) -> Scores:
    if isinstance(flow, ImageFlow):
        return measure(flow, x, context)
    narrow = narrowed(flow, x)
    largest = flow.data_map.transform(narrow).flatten(1).abs().amax(1)
    near = largest <= torch.finfo(narrow.dtype).max ** REACH
    if bool(near.all()):
        return measure(flow, narrow, context)
    wide = copy.deepcopy(flow).to(widest(x.device))
    columns = torch.empty(3, len(x), dtype=torch.float64, device=x.device)
    # Each row by itself decides its type, so that its score is the same in any batch.
    for rows, model in ((near, flow), (~near, wide)):
        if bool(rows.any()):
            part_x = narrowed(model, x[rows])
            known = None if context is None else context[rows].to(part_x.dtype)
            part = measure(model, part_x, known)
            columns[:, rows] = torch.stack([part.values, part.low, part.high])
    return Scores(*columns)
