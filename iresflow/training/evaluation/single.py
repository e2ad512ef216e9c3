"""The score of each sample of a batch by itself, with its error."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.ambient import full_precision
from iresflow.errors import NonFiniteError
from iresflow.logdet import LogDetEstimator
from iresflow.models import Flow, ImageFlow
from iresflow.models.likelihood import student_quantile
from iresflow.models.parts.plain import integer
from iresflow.training.evaluation.evaluate import Precision, round_seed, scoring_estimator

__all__ = ["SingleScores", "Scoring"]

FEWEST_DRAWS = 2
"""Of dequantisation noise: the spread of one draw is not seen."""


@final
@dataclass(frozen=True)
class Scoring:
    """How samples are scored one by one.

    Attributes:
        draws: Of dequantisation noise (and of probes) for each image, at least 2. Vectors have no
            noise, and take one.
        probes: In each draw, at least 2.
        level: Of the intervals, in (0, 1).
        seed: Of noise and probes.

    Raises:
        ValueError: a value out of range.
    """

    draws: int = 8
    probes: int = 2
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        integer("draws", self.draws, FEWEST_DRAWS)
        integer("probes", self.probes, 2)
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie strictly between 0 and 1, got {self.level}")

    @torch.no_grad()
    @full_precision()
    def __call__(self, flow: Flow, values: Tensor, context: Tensor | None) -> "SingleScores":
        """Scores samples: of images the bits/dim that their noise gives in the mean.

        The numbers that are drawn for a sample are a function of the seed and of the sample, so a
        sample has the same score in any batch.

        Arguments:
            flow: In eval mode.
            values: ``(B, *event)``, integers for an `ImageFlow`.
            context: ``(B, context_dim)``, or None.

        Raises:
            ValueError: as `Flow.likelihood` and `ImageFlow.bits_per_dim`.
            NonFiniteError: the model gives NaN for a sample.
            NotContractiveError: a block has no certified Lipschitz bound below 1.
        """
        estimator = scoring_estimator(flow, Precision(probes=self.probes))
        score = self._of_images if isinstance(flow, ImageFlow) else self._of_vectors
        scores = score(flow, values, context, estimator)  # type: ignore[arg-type]
        if bool(scores.values.isnan().any()):
            raise NonFiniteError(
                f"the model gives NaN for {int(scores.values.isnan().sum())} samples: its weights "
                "are damaged, a block is no contraction, or the samples are too large for "
                f"{scores.values.dtype}"
            )
        return scores

    def _of_vectors(
        self, flow: Flow, x: Tensor, context: Tensor | None, estimator: LogDetEstimator | None
    ) -> "SingleScores":
        result = flow.likelihood(x, context, estimator, seed=round_seed(self.seed, 0))
        low, high = result.interval(self.level)
        return SingleScores(
            result.log_prob, result.standard_error, result.truncation_bound, low, high
        )

    def _of_images(
        self,
        flow: ImageFlow,
        images: Tensor,
        context: Tensor | None,
        estimator: LogDetEstimator | None,
    ) -> "SingleScores":
        draws = [
            flow.bits_per_dim(images, context, estimator, seed=round_seed(self.seed, row))
            for row in range(self.draws)
        ]
        values = torch.stack([draw.values for draw in draws])
        # The spread of the draws holds their probes' too.
        error = values.std(0) / self.draws**0.5
        truncation = torch.stack([draw.truncation_bounds for draw in draws]).mean(0)
        rounding = torch.stack([draw.rounding for draw in draws]).mean(0)
        mean = values.mean(0)
        degrees = torch.full_like(mean, self.draws - 1)
        half = student_quantile(self.level, degrees) * error + truncation + rounding
        return SingleScores(mean, error, truncation, mean - half, mean + half)


@final
@dataclass(frozen=True, eq=False)
class SingleScores:
    """The scores of B samples: log-densities in nats of vectors, bits/dim of images.

    Attributes:
        values: ``(B,)``.
        standard_errors: ``(B,)``, of probes, and of images' dequantisation noise.
        truncation_bounds: ``(B,)``, upper bounds of what truncated series left out.
        low, high: ``(B,)``, the ends of intervals that hold the exact value.
    """

    values: Tensor
    standard_errors: Tensor
    truncation_bounds: Tensor
    low: Tensor
    high: Tensor
