"""Classification by densities: Bayes' rule with the errors of the likelihoods (thesis, 5.6)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import final

import torch
from torch import Tensor

from iresflow.models.likelihood import BlockLikelihood

__all__ = ["ClassProbabilities", "by_bayes", "log_prior_of"]


@final
@dataclass(frozen=True)
class ClassProbabilities:
    r"""Probabilities of C classes for B samples, with what the likelihoods' errors leave open.

    Attributes:
        probabilities: ``(B, C)``, of the estimated likelihoods.
        lower, upper: ``(B, C)``: they hold the probabilities of the exact likelihoods.
        log_odds: ``(B, C)`` nats, :math:`\log p(c | x) - \log p(b | x)` with the most probable
            class b.
        log_odds_error: ``(B, C)`` nats: half of the intervals around these.
        log_prob: ``(B, C)`` nats, the log-density of a sample given each class.
        level: With this probability, for each sample, all of its intervals hold at once.
    """

    probabilities: Tensor
    lower: Tensor
    upper: Tensor
    log_odds: Tensor
    log_odds_error: Tensor
    log_prob: Tensor
    level: float

    @property
    def classes(self) -> Tensor:
        """The most probable class of each sample, ``(B,)``."""
        return self.probabilities.argmax(1)

    @property
    def decided(self) -> Tensor:
        """Whether that class is the most probable one whatever the errors, ``(B,)`` booleans.

        Where it is not, more probes tell: ``log_det=Krylov(probes=16)``.
        """
        behind = self.log_odds + self.log_odds_error < 0
        return behind.scatter(1, self.classes[:, None], True).all(1)


def log_prior_of(prior: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """Logarithms ``(C,)`` of class probabilities, by default all equal.

    Raises:
        ValueError: another number of them, or they are no probabilities.
    """
    if prior is None:
        return torch.full((classes,), -math.log(classes), dtype=torch.float64, device=like.device)
    prior = torch.as_tensor(prior, dtype=torch.float64, device=like.device)
    total = float(prior.sum()) if prior.shape == (classes,) else torch.nan
    if not (bool((prior >= 0).all()) and abs(total - 1) < 1e-6):
        raise ValueError(
            f"the prior is {classes} probabilities that add up to 1, got {prior.tolist()}"
        )
    return prior.log()


def by_bayes(
    likelihood_of: Callable[[int], BlockLikelihood], log_prior: Tensor, level: float
) -> ClassProbabilities:
    r"""Class probabilities :math:`p(c | x) \propto p(c) p(x | c)`, with their intervals.

    What decides are differences of two classes' log-likelihoods. Each of the n = C (C - 1) / 2 has
    an interval that holds with a probability of 1 - (1 - level) / n, so all of them hold at once
    with at least ``level``, and so do those of the class that comes out best. Then
    :math:`p(c | x) = 1 / \sum_k \exp(d_{kc})` lies between the values with all differences
    :math:`d_{kc}` of class k to c at their upper ends, and all at their lower ends.

    Arguments:
        likelihood_of: The likelihoods of all samples, given a class number; by the same probes
            for all classes.
        log_prior: ``(C,)``.
        level: In (0, 1).

    Raises:
        ValueError: the level is not strictly between 0 and 1.
    """
    count = len(log_prior)
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    found = [likelihood_of(c) for c in range(count)]
    log_prob = torch.stack([likelihood.log_prob for likelihood in found], 1).double()
    # A class of probability 0 stays impossible, however wide its interval.
    possible = log_prior > -torch.inf
    joint = torch.where(possible, log_prior + log_prob, -torch.inf)
    half = _half_widths(found, 1 - (1 - level) / max(1, count * (count - 1) / 2))
    half = torch.where(possible[:, None] & possible, half, 0.0)
    log_odds = joint[:, :, None] - joint[:, None, :]  # (B, C, C), of the first to the second
    probabilities = joint.softmax(1)
    best = probabilities.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    return ClassProbabilities(
        probabilities,
        lower=torch.where(possible, 1 / (log_odds + half).exp().sum(1), 0.0),
        upper=torch.where(possible, 1 / (log_odds - half).exp().sum(1), 0.0),
        log_odds=log_odds[rows, :, best],
        log_odds_error=half[rows, :, best],
        log_prob=log_prob,
        level=level,
    )


def _half_widths(found: Sequence[BlockLikelihood], level: float) -> Tensor:
    """Half of the intervals ``(B, C, C)`` of the differences of C log-likelihoods, in nats."""
    first = found[0].log_prob
    half = first.new_zeros(len(first), len(found), len(found), dtype=torch.float64)
    for a, c in combinations(range(len(found)), 2):
        ratio = found[a].ratio_to(found[c])
        half[:, a, c] = half[:, c, a] = ratio.half_width(level).double()
    return half
