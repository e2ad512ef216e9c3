"""How well scores tell samples that are inside from others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import Tensor

from iresflow.tensors import as_tensor

__all__ = ["Separation", "evaluate"]

Interval = tuple[float, float]

DETECTED = 0.95
"""The share of outliers that the false positive rate is told for."""

ROUNDING = 1e-12
"""Of a share of counts."""


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
    generator = np.random.default_rng(seed)
    # How often each sample is drawn; in the first row once each.
    drawn = [
        np.vstack([np.ones(n), generator.multinomial(n, np.full(n, 1 / n), resamples)])
        for n in (len(values) for values in scores)
    ]
    found = _metrics(np.concatenate(scores), *drawn)
    ends = np.quantile(found[:, 1:], [(1 - level) / 2, (1 + level) / 2], axis=1).T
    intervals = [(float(low), float(high)) for low, high in ends]
    auroc, aupr, fpr95 = (float(value) for value in found[:, 0])
    return Separation(auroc, aupr, fpr95, intervals[0], intervals[1], intervals[2], level)


def _array(values: Tensor | np.ndarray | Sequence[float], name: str) -> np.ndarray:
    tensor = as_tensor(f"scores {name}", values).detach().cpu()
    if tensor.is_complex():
        raise ValueError(f"scores {name} must be real numbers, got {tensor.dtype}")
    array = tensor.double().numpy()
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"scores {name} are numbers (N,), one or more, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError(f"{int(np.isnan(array).sum())} of the scores {name} are NaN")
    return array


def _metrics(scores: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, average precision, false positive rate at `DETECTED`: ``(3, R)``.

    Arguments:
        scores: ``(N + M,)``, those inside first; order alone matters.
        inside, outside: How often each counts, ``(R, N)`` and ``(R, M)``.
    """
    falling = np.argsort(-scores, kind="stable")
    ranked = scores[falling]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of those with equal scores
    nothing = np.zeros_like(inside), np.zeros_like(outside)
    true = np.hstack([nothing[0], outside])[:, falling]
    false = np.hstack([inside, nothing[1]])[:, falling]
    # Of all with such a score or a larger one, the shares of outliers and of those inside.
    hits, wrong = (np.add.reduceat(part, first, axis=1).cumsum(1) for part in (true, false))
    precision = hits / np.maximum(hits + wrong, 1)
    recall, rate = hits / hits[:, -1:], wrong / wrong[:, -1:]
    steps = np.diff(recall, axis=1, prepend=0)
    above = np.diff(rate, axis=1, prepend=0) * (recall - steps / 2)
    enough = (recall >= DETECTED - ROUNDING).argmax(1)
    at = np.take_along_axis(rate, enough[:, None], 1)[:, 0]
    return np.stack([above.sum(1), (steps * precision).sum(1), at])
