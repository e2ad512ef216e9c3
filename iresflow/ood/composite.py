"""Scores that are functions of others, and several scores whose common parts are computed once."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from iresflow.models import Flow
from iresflow.ood.base import Measure, Score, Scores, measured, require_numbers
from iresflow.ood.samples import checked
from iresflow.training.loop.inputs import Array

__all__ = ["Combine", "Composite", "Panel"]

Combine = Callable[[Flow, Tensor, Sequence[Scores]], Scores]
"""From samples and their scores by each part to their scores."""


class Composite(Score):
    """A score that is a function of other scores, its parts."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Score, ...]:
        """The scores that it is a function of."""

    @abstractmethod
    def combine(self, flow: Flow, x: Tensor, inside: Sequence[Scores]) -> Combine:
        """The function, given samples that are inside and their scores by each part.

        Raises:
            ValueError: it can't be fitted to these.
        """

    @final
    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        measures = [part.prepare(flow, x, context) for part in self.parts]
        inside = [measured(measure, flow, x, context) for measure in measures]
        return _Combined(measures, self.combine(flow, x, inside))


@final
@dataclass(frozen=True, eq=False)
class _Combined:
    """Measures the parts, and then what they are combined to."""

    measures: Sequence[Measure]
    combine: Combine

    def __call__(self, flow: Flow, x: Tensor, context: Tensor | None) -> Scores:
        return self.combine(flow, x, [measure(flow, x, context) for measure in self.measures])


@final
class Panel:
    """Several scores of a flow, fitted to the same samples; what they share is computed once.

    Arguments:
        flow, x, context: As of `Score.fit`.
        scores: What to fit.

    Raises:
        What `Score.fit` raises.
    """

    def __init__(
        self, flow: Flow, scores: Sequence[Score], x: Array, context: Array | None = None
    ) -> None:
        values, known = checked(flow, x, context)
        self._flow, self._scores = flow, tuple(scores)
        self._measures: dict[Score, Measure] = {}
        self._combines: dict[Score, Combine] = {}
        inside: dict[Score, Scores] = {}
        for score in scores:
            self._prepare(score, values, known, inside)

    def scores(self, x: Array, context: Array | None = None) -> list[Scores]:
        """Of samples by each score, in their order; arguments and errors as of a fitted one."""
        values, known = checked(self._flow, x, context)
        found: dict[Score, Scores] = {}
        return [self._measured(score, values, known, found) for score in self._scores]

    def _prepare(
        self, score: Score, x: Tensor, context: Tensor | None, inside: dict[Score, Scores]
    ) -> None:
        if score in self._measures or score in self._combines:
            return
        if not isinstance(score, Composite):
            self._measures[score] = score.prepare(self._flow, x, context)
            return
        for part in score.parts:
            self._prepare(part, x, context, inside)
        parts = [self._measured(part, x, context, inside) for part in score.parts]
        self._combines[score] = score.combine(self._flow, x, parts)

    def _measured(
        self, score: Score, x: Tensor, context: Tensor | None, found: dict[Score, Scores]
    ) -> Scores:
        if score not in found:
            if isinstance(score, Composite):
                parts = [self._measured(part, x, context, found) for part in score.parts]
                found[score] = require_numbers(self._combines[score](self._flow, x, parts))
            else:
                found[score] = measured(self._measures[score], self._flow, x, context)
        return found[score]
