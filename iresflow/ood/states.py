"""The density of several scores together, at samples that are inside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor

from iresflow.models import Flow
from iresflow.ood.base import Combine, Composite, Score, require_scores
from iresflow.ood.latent_fit import LatentFit
from iresflow.ood.likelihoods import LogProb
from iresflow.ood.score_norm import ScoreNorm
from iresflow.ood.scores import Scores

__all__ = ["Density", "DensityOfStates", "StateDensity"]

ALONG = 9
"""Places on an error bar at which the density is asked for: it may peak between the ends."""


class Density(Protocol):
    """A density estimator of scikit-learn: ``KernelDensity``, ``GaussianMixture``, or a pipeline
    that ends in one."""

    def fit(self, X: np.ndarray) -> Any: ...  # noqa: ANN401 (scikit-learn's own)

    def score_samples(self, X: np.ndarray) -> np.ndarray: ...


@final
@dataclass(frozen=True)
class DensityOfStates(Composite):
    """Minus the log-density of several scores together: their state.

    It finds what is rare among the samples that are inside, in whatever direction.

    Arguments:
        statistics: The scores.
        density: Estimates their density, from scikit-learn, such as a pipeline that first takes
            logarithms; None for a ``KernelDensity`` with normal kernels of Scott's width, in
            units of the statistics' deviations. It is asked all along the error bars, too.

    Raises:
        ValueError: no statistics, others than scores, or no density estimator.

    References:
        Density of States Estimation for Out-of-Distribution Detection (Morningstar et al., 2021).
        https://arxiv.org/abs/2006.09273
    """

    statistics: tuple[Score, ...] = field(
        default_factory=lambda: (LogProb(), LatentFit(), ScoreNorm())
    )
    density: Density | None = None

    def __post_init__(self) -> None:
        statistics = require_scores("a state", self.statistics)
        if not statistics:
            raise ValueError("statistics must name one score or more, got none")
        object.__setattr__(self, "statistics", statistics)
        for method in ("fit", "score_samples", "get_params"):
            if self.density is not None and not callable(getattr(self.density, method, None)):
                raise ValueError(
                    f"a density is an estimator of scikit-learn with {method}, got "
                    f"{self.density!r}"
                )

    @property
    def parts(self) -> tuple[Score, ...]:
        return self.statistics

    def combine(self, flow: Flow, x: Tensor, inside: Sequence[Scores]) -> Combine:
        return StateDensity.fit([part.values for part in inside], self.density)


@final
@dataclass(frozen=True, eq=False)
class StateDensity:
    """A fitted density of K statistics, as an estimator of scikit-learn has it."""

    estimator: Density

    @classmethod
    def fit(cls, inside: Sequence[Tensor], density: Density | None = None) -> "StateDensity":
        """Of K statistics ``(N,)`` each.

        Raises:
            ValueError: a statistic has no spread, such as that of a single sample, or is infinite.
        """
        from sklearn.base import clone  # slow to import
        from sklearn.neighbors import KernelDensity
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        table = _table(inside)
        if not np.isfinite(table).all():
            raise ValueError("a statistic is infinite at a sample that shall be inside")
        deviation = table.std(0)
        if not (deviation > 0).all():
            raise ValueError(
                f"{len(table)} samples show no spread of statistic {int(deviation.argmin())}: a "
                "density is fitted to two or more that differ"
            )
        usual = make_pipeline(StandardScaler(), KernelDensity(bandwidth="scott"))
        return cls(clone(usual if density is None else density).fit(table))

    def __call__(self, flow: Flow, x: Tensor, statistics: Sequence[Scores]) -> Scores:
        """Minus log-densities, of K statistics with their errors.

        Each statistic is moved along its error bar, with the others in their places, and what
        changes adds up: upwards and downwards apart, since far out a density may fall by much to
        one side and by little to the other. Where a statistic is infinite, or the density of the
        state is 0 in floats, the score is infinite.
        """
        values, low, high = (
            _table([getattr(part, name) for part in statistics])
            for name in ("values", "low", "high")
        )
        known = np.isfinite(values).all(1)
        columns = np.full((3, len(values)), np.inf)
        if known.any():
            middle = self._surprisal(values[known])
            below, above = middle.copy(), middle.copy()
            for column in range(values.shape[1]):
                moved = np.repeat(values[None, known], ALONG, 0)
                ends = low[known, column], high[known, column]
                moved[:, :, column] = np.linspace(*ends, ALONG)
                along = self._surprisal(moved.reshape(-1, values.shape[1])).reshape(ALONG, -1)
                with np.errstate(invalid="ignore"):  # infinite scores have no error bars
                    below += np.minimum(along.min(0) - middle, 0)
                    above += np.maximum(along.max(0) - middle, 0)
            columns[:, known] = np.where(np.isposinf(middle), np.inf, [middle, below, above])
        return Scores(*torch.from_numpy(columns).to(statistics[0].values.device))

    def _surprisal(self, table: np.ndarray) -> np.ndarray:
        return -self.estimator.score_samples(table)


def _table(columns: Sequence[Tensor]) -> np.ndarray:
    return np.stack([column.double().cpu().numpy() for column in columns], axis=1)
