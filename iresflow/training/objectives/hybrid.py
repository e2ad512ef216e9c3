"""The objective of hybrid models: class and density from one network."""

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.bijections import dequantize
from iresflow.logdet import TRAINING, LogDetEstimator
from iresflow.models import Flow, InvertibleClassifier
from iresflow.models.densities import DiagonalNormal
from iresflow.models.parts.plain import number
from iresflow.streams import KeyedStream, Stream
from iresflow.tensors import widest
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Score, Terms
from iresflow.training.objectives.classification import (
    Classification,
    class_numbers,
    classifier_of,
    require_made_for,
    score_of,
    share_right,
)

__all__ = [
    "Hybrid",
    "estimator_of",
    "evaluated_latents",
    "latents_of",
    "require_density",
    "require_weights",
]

EVALUATED = 100
"""Samples whose log-determinants are evaluated at a time."""


@final
@dataclass(frozen=True, eq=False)
class Hybrid(Classification):
    r"""Cross entropy and the log-likelihood of x (Nalisnick et al., 2019; Chen et al., 2019).

    :math:`-\log p(y | x) - \frac{w}{D} \log p(x)` in nats, with the softmax of the logits, and
    :math:`\log p(x) = \log N(z; \beta, \gamma) + \log |\det J_F(x)|` of the whole latent with
    means and deviations that are trained. Integer images are dequantised.

    Arguments:
        prior: The normal density of the latent, which is trained.
        weight: w, of the log-likelihood in nats a dimension.
        log_det: The estimator of log-determinants in training.
    """

    prior: DiagonalNormal
    weight: float = 1.0
    log_det: LogDetEstimator = TRAINING

    @staticmethod
    def of(
        net: InvertibleClassifier, weight: float = 1.0, log_det: LogDetEstimator | None = None
    ) -> "Hybrid":
        """The objective for a classifier.

        Raises:
            ValueError: the classifier pads its input, so that its latent has no density; or a
                negative weight.
        """
        require_weights(net, weight)
        require_density(net)
        prior = DiagonalNormal(net.base_dim, learned=True)
        return Hybrid(prior, weight, estimator_of(log_det))

    @property
    def own(self) -> nn.Module:
        return self.prior

    def unit(self, model: nn.Module) -> str:
        return "hybrid"

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        net, labels = classifier_of(model), class_numbers(batch)
        z, log_det = latents_of(net, batch.values, self.log_det, stream)
        logits = net.read_out(z)
        cross_entropy = F.cross_entropy(logits, labels)
        nats = -(self.prior.log_prob(z) + log_det).mean() / z.shape[1]
        return Terms(
            cross_entropy + self.weight * nats,
            {
                "accuracy": share_right(logits, labels),
                "cross_entropy": cross_entropy,
                "nats_per_dim": nats,
            },
        )

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        net = classifier_of(model)
        z, log_det = evaluated_latents(net, split.values)
        score = score_of(net.read_out(z), class_numbers(split))
        nats = -float((self.prior.log_prob(z) + log_det).mean()) / z.shape[1]
        logged = {"cross_entropy": score.value, "nats_per_dim": nats}
        return Score(score.value + self.weight * nats, {**score.logged, **logged})

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        net = classifier_of(model)
        require_made_for(net, len(self.prior.mean), net.classes)
        super().initialize(model, split, seed)


def require_weights(net: nn.Module, *weights: float) -> None:
    """Raises a ValueError where a model is no invertible classifier, or a weight out of range."""
    classifier_of(net)
    if not all(number("each weight", weight) >= 0 for weight in weights):
        raise ValueError(f"weights must be 0 or more, got {', '.join(map(str, weights))}")


def estimator_of(log_det: LogDetEstimator | None) -> LogDetEstimator:
    """An estimator for training: the one that is given, or else `TRAINING`.

    Raises:
        ValueError: something else is given.
    """
    if log_det is None:
        return TRAINING
    if not isinstance(log_det, LogDetEstimator):
        raise ValueError(f"log_det is a LogDetEstimator, such as PowerSeries(), got {log_det!r}")
    return log_det


def require_density(net: InvertibleClassifier) -> None:
    """Raises a ValueError where the latent of a classifier has no density."""
    if net.pad:
        raise ValueError(
            f"a likelihood needs a latent of as many dimensions as x, and pad={net.pad} channels "
            "of zeros add more: build the classifier with pad=0"
        )


def latents_of(
    net: InvertibleClassifier, values: Tensor, log_det: LogDetEstimator, stream: Stream
) -> tuple[Tensor, Tensor]:
    """Latents ``(B, D)`` and log-determinants ``(B,)`` of a batch.

    Integer images are dequantised to [0, 1), so their density is one of x in these units.
    """
    x = values
    if not x.is_floating_point():
        dtype = next(net.parameters()).dtype
        x = dequantize(x, net.levels, dtype=dtype, generator=stream)
    return net.transform_and_log_det(x, partial(log_det, generator=stream))


@torch.no_grad()
def evaluated_latents(net: InvertibleClassifier, values: Tensor) -> tuple[Tensor, Tensor]:
    """Latents ``(N, D)`` and log-determinants ``(N,)`` in eval mode; the same in every call."""
    device = next(net.parameters()).device
    parts = []
    for part in values.split(EVALUATED):
        x = part.to(device)
        content = x.to(widest(device)) if x.is_floating_point() else x
        parts.append(latents_of(net, x, Flow.EVALUATION, KeyedStream.of_samples(0, content)))
    return torch.cat([z for z, _ in parts]), torch.cat([d for _, d in parts])
