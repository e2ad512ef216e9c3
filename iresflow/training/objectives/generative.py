"""Objectives of conditional flows that classify: one density for each class (thesis, 5.6)."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from iresflow.models import Flow, ImageFlow
from iresflow.models.likelihood import sample_stream
from iresflow.streams import UNIFORM, KeyedStream, Stream, draw
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.loop.classes import require_classes
from iresflow.training.objectives.base import Album, Objective, Ready, Score, Terms
from iresflow.training.objectives.classification import class_numbers
from iresflow.training.objectives.likelihood import MaximumLikelihood

__all__ = ["Generative", "MixtureLikelihood", "classified"]

CLASSIFIED = 512
"""Samples that are classified for an accuracy, at most: it takes a likelihood for each class."""


@final
@dataclass(frozen=True)
class Generative(Objective):
    """Maximum likelihood of a flow given the class, with the accuracy of its Bayes' rule.

    The loss and what chooses a model are those of `MaximumLikelihood`; the accuracy is measured
    in validations.
    """

    likelihood: MaximumLikelihood = MaximumLikelihood()

    def unit(self, model: nn.Module) -> str:
        return self.likelihood.unit(model)

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        return self.likelihood(model, batch, stream)

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        score = self.likelihood.evaluate(_conditional(model), split)
        return Score(score.value, {**score.logged, "accuracy": _accuracy(model, split)})

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        flow = _conditional(model)
        if split.labels is not None and split.labels.ndim == 1:
            require_classes(split.labels, flow.context_dim)
        self.likelihood.initialize(flow, split, seed)

    def make_ready(self, model: nn.Module) -> Ready:
        return self.likelihood.make_ready(model)

    def illustrate(self, model: nn.Module, split: Samples, album: Album) -> None:
        self.likelihood.illustrate(model, split, album)


@final
@dataclass(frozen=True)
class MixtureLikelihood(Objective):
    r"""Minus the log-likelihood under a mixture over the classes, for few labels.

    Each sample comes with class probabilities :math:`w_c`, its labels ``(B, C)``: one-hot where
    the class is known, and the prior where it is not. :math:`-\log \sum_c w_c\, p(x | c)` is then
    the likelihood of the class and x up to a constant, or that of x alone. All classes of a sample
    share noise and probes, so that the differences between classes are not those of the draws.

    The likelihood of a few classes is little beside that of many images, and the mixture is free
    to put two classes into one density. So :math:`-\log p(c | x)` of the known classes, by Bayes'
    rule with equal priors, can count more than the once that it has in the likelihood (as in the
    hybrid models of Lasserre, Bishop and Minka, 2006).

    Arguments:
        class_weight: How often it counts, 0 or more: the number of samples for each one with a
            label weighs the labels as if all samples had one.

    Raises:
        ValueError: a weight out of range.
    """

    class_weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.class_weight) and self.class_weight >= 0):
            raise ValueError(f"class_weight must be 0 or more, got {self.class_weight}")

    def unit(self, model: nn.Module) -> str:
        return MaximumLikelihood().unit(model)

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        flow, weights = _conditional(model), _weights(batch)
        like = next(flow.parameters())
        x, constant, scale, log_noise = batch.values, 0.0, 1.0, torch.zeros(())
        if isinstance(flow, ImageFlow):
            noisy = flow.dequantized(x, stream, check=False)
            x, log_noise = noisy.value, noisy.log_density.mean()
            constant, scale = math.log2(flow.levels), 1 / (flow.base_dim * math.log(2))
        count, classes = len(x), flow.context_dim
        # All classes in one pass: in the next one, training would normalise by other norms.
        keys = draw(UNIFORM, (count,), stream, batch=0, device=x.device, dtype=torch.float64)
        shared = KeyedStream(keys.view(torch.int64).repeat(classes))
        every = x.repeat(classes, *[1] * (x.ndim - 1))
        one_hot = torch.eye(classes, dtype=like.dtype, device=like.device)
        context = one_hot.repeat_interleave(count, 0)
        z, log_det = flow.forward(every, context, generator=shared, check=False)
        log_prob = (flow.base.log_prob(z, context) + log_det).reshape(classes, count).T
        known = self._log_likelihoods(log_prob, weights.to(like))
        return Terms(constant - scale * (known.mean() - log_noise))

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        """The mean over all samples, and the accuracy on those whose class is known."""
        flow, weights = _conditional(model), _weights(split)
        found = classified(flow, split.values)
        value = -float(self._log_likelihoods(found, weights.to(found)).mean())
        if isinstance(flow, ImageFlow):
            value = value / (flow.base_dim * math.log(2)) + math.log2(flow.levels)
        known = weights.amax(1) == 1
        right = found.argmax(1)[known] == weights.argmax(1)[known].to(found.device)
        return Score(value, {"accuracy": float(right.double().mean())})

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        """As `MaximumLikelihood`.

        Raises:
            ValueError: the labels of a sample are no probabilities of the classes.
        """
        rows = _weights(split).double()
        if bool((rows < 0).any()) or float((rows.sum(1) - 1).abs().max()) > 1e-5:
            raise ValueError(
                "the class probabilities of each sample are 0 or more and add up to 1: one-hot "
                "where the class is known, and the prior where it is not"
            )
        MaximumLikelihood().initialize(model, split, seed)

    def make_ready(self, model: nn.Module) -> Ready:
        return MaximumLikelihood().make_ready(model)

    def _log_likelihoods(self, log_prob: Tensor, weights: Tensor) -> Tensor:
        """Of what is known of each sample, ``(B,)`` nats, from ``(B, C)`` given each class."""
        one_hot = weights * (weights == 1)
        of_class = (log_prob.log_softmax(1) * one_hot).sum(1)
        joint = (log_prob + weights.log()).logsumexp(1)
        return joint + (self.class_weight - 1) * of_class


def classified(flow: Flow, values: Tensor, batch_size: int = 250) -> Tensor:
    """Log-densities ``(N, C)`` in nats given each class, in eval mode; the same in every call.

    Images are dequantised with the same noise for all classes, less its log-density.

    Arguments:
        flow: Whose contexts are classes.
        values: ``(N, *event)``; integers for an `ImageFlow`.
        batch_size: Samples at a time.
    """
    like = next(flow.parameters())
    parts = []
    for part in values.split(batch_size):
        x, log_noise = part.to(like.device), torch.zeros(())
        if isinstance(flow, ImageFlow):
            noisy = flow.dequantized(x, sample_stream((x,), None, 0))
            x, log_noise = noisy.value, noisy.log_density.detach()[:, None]
        else:
            x = x.to(like.dtype)
        parts.append(flow.classify(x, seed=0).log_prob - log_noise.to(x.device))
    return torch.cat(parts)


def _accuracy(model: nn.Module, split: Samples) -> float:
    flow, labels = _conditional(model), class_numbers(split)[:CLASSIFIED]
    found = classified(flow, split.values[:CLASSIFIED]).argmax(1)
    return float((found == labels.to(found.device)).double().mean())


def _conditional(model: nn.Module) -> Flow:
    if not isinstance(model, Flow) or len(model.context_shape) != 1:
        raise ValueError(
            f"this objective trains conditional flows, got a {type(model).__name__}"
            + (" without classes as its contexts" if isinstance(model, Flow) else "")
        )
    return model


def _weights(samples: Samples) -> Tensor:
    if samples.labels is None or samples.labels.ndim != 2:
        raise ValueError("a mixture takes class probabilities (N, C) of each sample as its labels")
    return samples.labels
