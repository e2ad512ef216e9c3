"""What a score of outliers is: fitted to samples that are inside, larger the more outlying."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.ambient import full_precision
from iresflow.models import Flow, ImageFlow
from iresflow.ood.draws import Draws, Reads
from iresflow.ood.samples import batches, checked, narrowed
from iresflow.ood.scores import Decisions, Scores, require_numbers
from iresflow.tensors import widest
from iresflow.training.loop.inputs import Array

__all__ = [
    "Combine",
    "Composite",
    "FittedScore",
    "Measure",
    "MeasuredScore",
    "Panel",
    "Score",
    "require_scores",
]

REACH = 0.25
"""Beyond the largest number of a type of float to this power, squares and products of a flow may
overflow: such samples are scored in the widest type."""

Measure = Callable[[Draws], Scores]
"""Scores of a batch, of what is drawn of it."""

Combine = Callable[[Flow, Tensor, Sequence[Scores]], Scores]
"""From samples and their scores by each part to their scores."""


class Score(ABC):
    """A score that can be fitted: a `MeasuredScore`, or a `Composite` of others."""

    @property
    @abstractmethod
    def measured(self) -> tuple["MeasuredScore", ...]:
        """The scores of what is drawn that it is a function of."""

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
        return FittedScore(Panel(flow, [self], x, context))


class MeasuredScore(Score):
    """A score of what is drawn of a sample. A subclass is a frozen dataclass of its settings.

    Attributes:
        reads: What it reads of a draw, which says in what order several scores ask.
    """

    reads: ClassVar[Reads] = Reads.SAMPLE

    @property
    @final
    def measured(self) -> tuple["MeasuredScore", ...]:
        return (self,)

    @abstractmethod
    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        """What measures samples, given those that are inside.

        Arguments:
            flow: In eval mode.
            x: ``(N, *shape)``, checked.
            context: ``(N, *context_shape)`` or None.
        """


class Composite(Score):
    """A score that is a function of other scores, its parts. A subclass is a frozen dataclass."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Score, ...]:
        """The scores that it is a function of."""

    @property
    @final
    def measured(self) -> tuple[MeasuredScore, ...]:
        return tuple(one for part in self.parts for one in part.measured)

    @abstractmethod
    def combine(self, flow: Flow, x: Tensor, inside: Sequence[Scores]) -> Combine:
        """The function, given samples that are inside and their scores by each part.

        Raises:
            ValueError: it can't be fitted to these.
        """


@final
class Panel:
    """Several scores of a flow, fitted to the same samples; what they share is computed once.

    That holds for scores that others are functions of, and for passes through the flow: one pass
    of a draw gives its latent, its log-density and the gradient, whichever scores read them.

    Arguments:
        flow, x, context: As of `Score.fit`.
        scores: What to fit.

    Raises:
        What `Score.fit` raises.
    """

    def __init__(
        self, flow: Flow, scores: Sequence[Score], x: Array, context: Array | None = None
    ) -> None:
        self.flow, self._scores = flow, require_scores("a panel", scores)
        values, known = checked(flow, x, context)
        self._measures = {s: s.prepare(flow, values, known) for s in _in_order(self._scores)}
        self._combines: dict[Composite, Combine] = {}
        composites = [score for score in self._scores if isinstance(score, Composite)]
        inside = self._measure(values, known, _in_order(composites))
        for composite in composites:
            self._fit(composite, values, inside)

    def scores(self, x: Array, context: Array | None = None) -> list[Scores]:
        """Of samples by each score, in their order; arguments and errors as of a fitted one."""
        values, known = checked(self.flow, x, context)
        found = self._measure(values, known, self._measures)
        return [self._of(score, values, found) for score in self._scores]

    def _fit(self, score: Composite, x: Tensor, inside: dict[Score, Scores]) -> None:
        for part in score.parts:
            if isinstance(part, Composite):
                self._fit(part, x, inside)
        parts = [self._of(part, x, inside) for part in score.parts]
        self._combines[score] = score.combine(self.flow, x, parts)

    def _of(self, score: Score, x: Tensor, found: dict[Score, Scores]) -> Scores:
        """By a score, of which ``found`` has all that are measured, and keeps the others."""
        if score not in found:
            assert isinstance(score, Composite)
            parts = [self._of(part, x, found) for part in score.parts]
            found[score] = require_numbers(self._combines[score](self.flow, x, parts))
        return found[score]

    @full_precision()
    def _measure(
        self, x: Tensor, context: Tensor | None, scores: Iterable[MeasuredScore]
    ) -> dict[Score, Scores]:
        """Checked samples' scores by those that are measured, batch by batch."""
        wanted = {score: self._measures[score] for score in scores}
        if not wanted:
            return {}
        parts = [_of_batch(wanted, self.flow, *batch) for batch in batches(x, context)]
        return {
            s: require_numbers(Scores(*torch.cat([part[s] for part in parts], 1))) for s in wanted
        }


@final
@dataclass(frozen=True, eq=False)
class FittedScore:
    """A score of a flow's samples: fitted, with an error bar for each.

    The random numbers of a sample (its probes, the noise of an image) are a function of the
    score's seed and of the sample. So it has the same score in any batch, and errors are
    independent between different samples.

    Attributes:
        panel: Of this score alone.
    """

    panel: Panel

    @property
    def flow(self) -> Flow:
        """Whose samples are scored; in eval mode."""
        return self.panel.flow

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
        return self.panel.scores(x, context)[0]

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


def require_scores(what: str, scores: Iterable[Score]) -> tuple[Score, ...]:
    """The scores, or a ValueError where one of them is none."""
    found = (scores,) if isinstance(scores, Score) else tuple(scores)
    for score in found:
        if not isinstance(score, Score):
            raise ValueError(f"{what} is of scores such as LogProb(), got {score!r}")
    return found


def _in_order(scores: Iterable[Score]) -> list[MeasuredScore]:
    """What they are functions of: each once, and those first that read most of a draw, whose
    passes serve the others."""
    known = dict.fromkeys(part for score in scores for part in score.measured)
    return sorted(known, key=lambda score: score.reads, reverse=True)


def _of_batch(
    measures: Mapping[MeasuredScore, Measure], flow: Flow, x: Tensor, context: Tensor | None
) -> dict[MeasuredScore, Tensor]:
    """Values and ends of the error bars, ``(3, B)``, by each score."""
    if isinstance(flow, ImageFlow):
        return _of_draws(measures, Draws(flow, x, context))
    narrow = narrowed(flow, x)
    largest = flow.data_map.transform(narrow).flatten(1).abs().amax(1)
    near = largest <= torch.finfo(narrow.dtype).max ** REACH
    if bool(near.all()):
        return _of_draws(measures, Draws(flow, narrow, context))
    wide = copy.deepcopy(flow).to(widest(x.device))
    found = {s: x.new_empty(3, len(x), dtype=torch.float64) for s in measures}
    # Each row by itself decides its type, so that its score is the same in any batch.
    for rows, model in ((near, flow), (~near, wide)):
        if bool(rows.any()):
            part_x = narrowed(model, x[rows])
            known = None if context is None else context[rows].to(part_x.dtype)
            for score, columns in _of_draws(measures, Draws(model, part_x, known)).items():
                found[score][:, rows] = columns
    return found


def _of_draws(
    measures: Mapping[MeasuredScore, Measure], draws: Draws
) -> dict[MeasuredScore, Tensor]:
    parts = {score: measure(draws) for score, measure in measures.items()}
    return {s: torch.stack([part.values, part.low, part.high]) for s, part in parts.items()}
