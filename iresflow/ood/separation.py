"""How well scores tell samples that are inside from others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

__all__ = ["Separation", "evaluate"]

Interval = tuple[float, float]

DETECTED = 0.95
"""The share of outliers that the false positive rate is told for."""


@final
@dataclass(frozen=True)
class Separation:
    """How well scores tell outliers from samples that are inside.

    Attributes:
        auroc: The probability that an outlier has a larger score than a sample that is inside;
            equal scores count half.
        aupr: The average precision, outliers being what is looked for.
        fpr95: The share of samples inside that are taken for outliers where 95 % of the outliers
            are found.
        auroc_interval, aupr_interval, fpr95_interval: Ends of percentile bootstrap intervals, by
            which other samples would differ. Both ends are 1 or 0 where the samples are told apart
            without an error, though others might not be.
        level: Of the intervals.
    """

    auroc: float
    aupr: float
    fpr95: float
    auroc_interval: Interval
    aupr_interval: Interval
    fpr95_interval: Interval
    level: float


def evaluate(
    inside: Tensor | np.ndarray | Sequence[float],
    outside: Tensor | np.ndarray | Sequence[float],
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Separation:
    """How well scores tell outliers apart, with bootstrap intervals.

    Arguments:
        inside: Scores ``(N,)`` of samples that are inside; infinite ones are allowed.
        outside: Scores ``(M,)`` of outliers.
        resamples: Of the bootstrap, which draws both sets anew, each from itself.
        level: Of the intervals, in (0, 1).
        seed: Of the resamples.

    Raises:
        ValueError: an empty set, NaN among the scores, or a number out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"level must lie in (0, 1) and resamples be at least 1, got {level} and {resamples}"
        )
    scores = [_array(values, name) for values, name in ((inside, "inside"), (outside, "outside"))]
    counts = [len(values) for values in scores]
    # Order alone matters, and ranks are finite where scores are not.
    ranks = rankdata(np.concatenate(scores), "dense").astype(float)
    outlying = np.repeat([0, 1], counts)
    generator = np.random.default_rng(seed)
    drawn = [
        _metrics(
            outlying,
            ranks,
            np.concatenate([generator.multinomial(n, np.full(n, 1 / n)) for n in counts]),
        )
        for _ in range(resamples)
    ]
    ends = np.quantile(np.array(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0).T
    auroc, aupr, fpr95 = ((float(low), float(high)) for low, high in ends)
    return Separation(*_metrics(outlying, ranks, np.ones(sum(counts))), auroc, aupr, fpr95, level)


def _array(values: Tensor | np.ndarray | Sequence[float], name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"scores {name} are numbers (N,), one or more, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} of the scores {name} are NaN")
    return array


def _metrics(
    outlying: np.ndarray, ranks: np.ndarray, weights: np.ndarray
) -> tuple[float, float, float]:
    """Area under the ROC curve, average precision, and the false positive rate at `DETECTED`."""
    from sklearn.metrics import auc, average_precision_score, roc_curve  # slow to import

    kept = weights > 0
    truth, score, weight = outlying[kept], ranks[kept], weights[kept]
    false, true, _ = roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
    precision = average_precision_score(truth, score, sample_weight=weight)
    # The curve steps: at a rate between two thresholds, the lower of them finds enough.
    first = int((true >= DETECTED - 1e-12).argmax())
    return float(auc(false, true)), float(precision), float(false[first])
