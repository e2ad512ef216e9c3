"""What a representation is known to say of the class: variational lower bounds (Lemma 6.15)."""

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.errors import NonFiniteError
from iresflow.tensors import require_tensor
from iresflow.training.loop.classes import require_class_numbers

__all__ = ["Information", "information_bound"]


@final
@dataclass(frozen=True)
class Information:
    """A lower bound of the mutual information of a class Y and a representation Z, in nats.

    It is that of the classifier that was asked, so a better one may know more.

    Attributes:
        nats: :math:`H(Y) + E \\log q(Y | Z)`; below 0 for a classifier that is worse than the
            shares of the classes.
        standard_error: Of that, from the choice of the samples.
        entropy: H(Y), which no information exceeds.
        accuracy: Share of samples whose most probable class is theirs.
        accuracy_error: Its standard error.
        samples: N.
    """

    nats: float
    standard_error: float
    entropy: float
    accuracy: float
    accuracy_error: float
    samples: int


def information_bound(logits: Tensor, labels: Tensor, prior: Tensor | None = None) -> Information:
    """The bound of Barber and Agakov (2003) by the softmax of logits on held-out samples.

    Arguments:
        logits: ``(N, C)`` of a classifier q that saw the representation, not these samples;
            minus infinity for a class that it rules out.
        labels: Class numbers ``(N,)``, 0 .. C - 1.
        prior: The probabilities ``(C,)`` of the classes, above 0 for those of the labels; by
            default their shares in the labels.

    Raises:
        ValueError: shapes that don't fit each other, no sample, labels out of range, or no
            probabilities.
        NonFiniteError: a logit is NaN or infinity.
    """
    require_tensor("logits", logits)
    require_tensor("labels", labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"logits (N, C) and labels (N,) with N at least 1, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    count, classes = logits.shape
    require_class_numbers(labels, classes, "these logits")
    logits, labels = logits.detach().double(), labels.to(logits.device).long()
    if not bool((logits < math.inf).all()):
        raise NonFiniteError("the classifier gives NaN or infinity")
    shares = torch.bincount(labels, minlength=classes).double() / count
    prior = shares if prior is None else _probabilities(prior.to(shares), shares)
    # With the samples' own shares, the mean of -log p(y) is the entropy itself, so that the spread
    # of the terms holds the error of both.
    surprise = -prior.log()[labels]
    terms = surprise - F.cross_entropy(logits, labels, reduction="none")
    entropy = float(torch.special.entr(prior).sum())
    offset = entropy - float(surprise.mean())
    right = (logits.argmax(1) == labels).double()
    return Information(
        nats=float(terms.mean()) + offset,
        standard_error=_error(terms),
        entropy=entropy,
        accuracy=float(right.mean()),
        accuracy_error=_error(right),
        samples=count,
    )


def _probabilities(prior: Tensor, shares: Tensor) -> Tensor:
    """A prior ``(C,)``, if it is one of classes with these shares."""
    fits = prior.shape == shares.shape and bool((prior >= 0).all())
    if not fits or abs(float(prior.sum()) - 1) > 1e-6 or bool((prior[shares > 0] == 0).any()):
        raise ValueError(
            f"the prior is {len(shares)} probabilities that add up to 1, above 0 for each class "
            f"of the labels, got {prior.tolist()}"
        )
    return prior


def _error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
