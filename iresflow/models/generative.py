"""Classification by densities: Bayes' rule with the errors of the likelihoods (thesis, 5.6)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.models.likelihood import Likelihood

__all__ = ["ClassProbabilities", "by_bayes", "log_prior_of"]


@final
@dataclass(frozen=True)
class ClassProbabilities:
    """Probabilities of C classes for B samples, with what the likelihoods' errors leave open.

    Attributes:
        probabilities: ``(B, C)``, of the estimated likelihoods.
        lower, upper: ``(B, C)``: with a probability of ``level`` for each sample, they hold the
            probabilities of the exact likelihoods, all classes at once.
        log_prob: ``(B, C)`` nats, the log-density of a sample given each class.
        level: Of the intervals.
    """

    probabilities: Tensor
    lower: Tensor
    upper: Tensor
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
        best = self.classes[:, None]
        others = self.upper.scatter(1, best, 0.0)
        return self.lower.gather(1, best)[:, 0] > others.amax(1)


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
    likelihood_of: Callable[[int], Likelihood], log_prior: Tensor, level: float
) -> ClassProbabilities:
    r"""Class probabilities :math:`p(c | x) \propto p(c) p(x | c)`, with their intervals.

    The interval of each class' likelihood holds with a probability of 1 - (1 - level) / C, so all
    of them hold at once with at least ``level``. A class is then as probable at most as with its
    own upper end and the lower ends of all others, and the other way round.

    Arguments:
        likelihood_of: The likelihoods of all samples, given a class number.
        log_prior: ``(C,)``.
        level: In (0, 1).

    Raises:
        ValueError: the level is not strictly between 0 and 1.
    """
    count = len(log_prior)
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    each = 1 - (1 - level) / count
    found = [likelihood_of(c) for c in range(count)]
    ends = [likelihood.interval(each) for likelihood in found]
    log_prob = torch.stack([likelihood.log_prob for likelihood in found], 1).double()
    low, high = (torch.stack(end, 1).double() for end in zip(*ends, strict=True))
    # A class of probability 0 stays impossible, however wide its interval.
    possible = log_prior > -torch.inf
    joint, low, high = (
        torch.where(possible, log_prior + part, -torch.inf) for part in (log_prob, low, high)
    )
    return ClassProbabilities(
        joint.softmax(1), _extreme(low, high), _extreme(high, low), log_prob, level
    )


def _extreme(own: Tensor, others: Tensor) -> Tensor:
    """Probabilities ``(B, C)`` of each class with one end of its own and another of the others."""
    count = own.shape[1]
    mine = torch.eye(count, dtype=torch.bool, device=own.device)
    tables = torch.where(mine, own[:, :, None], others[:, None, :])  # (B, class, all classes)
    # An end at infinity decides by itself: infinite intervals leave 0 to 1.
    peak = tables.amax(2, keepdim=True).nan_to_num(posinf=0.0, neginf=0.0)
    weights = (tables - peak).exp()
    total = weights.sum(2)
    share = weights.diagonal(dim1=1, dim2=2) / torch.where(total > 0, total, 1)
    return torch.where(own == torch.inf, 1.0, torch.where(total > 0, share, total))
