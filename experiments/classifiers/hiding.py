"""How a network may hide the class from a nuisance classifier: variants of independence cross
entropy on small images with a planted cue, in training and under the shift."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from experiments.classifiers.shift import CUES, measured, with_cues
from experiments.classifiers.training import train_once
from iresflow import InvertibleClassifier, PowerSeries
from iresflow.commands.report import Report
from iresflow.data import Dataset, Split
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Ready, Score, Terms
from iresflow.training.objectives.classification import CrossEntropy, class_numbers, classifier_of
from iresflow.training.objectives.hybrid import latents_of
from iresflow.training.objectives.independence import Independence
from iresflow.training.sections import Section

__all__ = ["DATA", "VARIANTS", "Hidden", "Settings", "confusion", "denial", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

Hiding = Callable[[Tensor, Tensor], Tensor]
"""What the network descends, of the nuisance classifier's logits ``(B, C)`` and the labels."""


def reversal(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the cross entropy (Definition 6.14), without a gradient where it is 0."""
    return -F.cross_entropy(logits, labels)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of equal probabilities (Tzeng et al., 2015, arXiv:1510.02192, eq. 3)."""
    return -logits.log_softmax(1).mean()


def denial(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(1 - q(y)), which does not saturate either (Goodfellow et al., 2014, section 3)."""
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


@final
@dataclass(frozen=True)
class Variant:
    """What is asked of the network beside the cross entropy of its logits.

    Attributes:
        name: In words.
        hiding: Of the nuisance, or None for cross entropy alone.
        nuisance_weight: v, of that.
        likelihood_weight: w, as of `Independence`.
        logit_weight: Of half the logits' squared norm, minus the logarithm of a normal density
            up to a constant (spectral decoupling, Pezeshki et al., 2021, arXiv:2011.09468).
    """

    name: str
    hiding: Hiding | None = None
    nuisance_weight: float = 1.0
    likelihood_weight: float = 0.0
    logit_weight: float = 0.0


VARIANTS = (
    Variant("cross entropy"),
    Variant("and small logits", logit_weight=0.03),
    Variant("reversal", reversal),
    Variant("confusion", confusion),
    Variant("confusion, v = 0.1", confusion, 0.1),
    Variant("denial, v = 0.3", denial, 0.3),
    Variant("confusion, small logits, likelihood", confusion, 1.0, 1.0, 0.03),
    Variant("confusion, v = 0.05", confusion, 0.05),
    Variant("denial, v = 0.1", denial, 0.1),
)
"""The rows, for each cue."""


@dataclass(kw_only=True)
class Settings(Section):
    """Hiding."""

    seed: int = 0
    """Seed of the networks and of the cues."""
    cues: tuple[Literal["pixel", "texture"], ...] = CUES
    """What is planted."""
    rows: tuple[int, ...] = tuple(range(len(VARIANTS)))
    """Which variants, by their numbers from 0 on."""
    steps: int = 450
    """Of training, of 64 images each."""
    train: int = 20_000
    """Training images."""
    test: int = 2000
    """Test images."""
    probed: int = 4000
    """Images that the fresh classifiers learn from."""
    probe_steps: int = 200
    """Training steps of these."""


def quick(settings: Settings) -> Settings:
    return replace(settings, cues=("pixel",), steps=10, train=1000, test=300, probe_steps=20)


@final
@dataclass(frozen=True, eq=False)
class Hidden(Objective):
    """Independence cross entropy with another way of hiding, and a density of the logits.

    The nuisance classifier descends its cross entropy on a nuisance that it does not move, and the
    network what the variant says on a nuisance classifier that it does not move.
    """

    base: Independence
    variant: Variant

    @property
    def own(self) -> nn.Module:
        return self.base.opponent

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        net, labels, variant = classifier_of(model), class_numbers(batch), self.variant
        prior, nats = self.base.opponent.prior, torch.zeros(())
        if variant.likelihood_weight:
            z, log_det = latents_of(net, batch.values, self.base.log_det, stream)
            nats = -(prior.log_prob(z[:, net.classes :]) + log_det).mean()
        else:
            z = net.transform(batch.values)
        semantic, nuisance = z[:, : net.classes], z[:, net.classes :]
        loss = F.cross_entropy(semantic, labels)
        logged = {"cross_entropy": loss}
        loss = loss + variant.logit_weight / 2 * semantic.square().sum(1).mean()
        loss = loss + variant.likelihood_weight * nats / nuisance.shape[1]
        if variant.hiding is not None:
            classifier, seen = self.base.opponent.classifier, standardized(nuisance)
            guess = F.cross_entropy(classifier(seen.detach()), labels)
            frozen = {name: p.detach() for name, p in classifier.named_parameters()}
            hidden = variant.hiding(functional_call(classifier, frozen, (seen,)), labels)
            loss, logged["nuisance"] = loss + guess + variant.nuisance_weight * hidden, guess
        return Terms(loss, logged)

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        return CrossEntropy().evaluate(model, split)

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        self.base.initialize(model, split, seed)

    def make_ready(self, model: nn.Module) -> Ready:
        return self.base.make_ready(model)


def standardized(nuisance: Tensor) -> Tensor:
    """The nuisance ``(B, D)`` in units of its deviations in the batch, which are constants."""
    deviation, mean = torch.std_mean(nuisance.detach(), dim=0)
    return (nuisance - mean) / deviation.clamp_min(1e-3)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Trains and measures one network for each variant and cue."""
    if not all(0 <= number < len(VARIANTS) for number in settings.rows):
        raise ValueError(f"rows are 0 .. {len(VARIANTS) - 1}, got {list(settings.rows)}")
    dataset = halved(data["images"])
    rows: list[dict[str, Any]] = []
    for cue in settings.cues:
        splits = with_cues(dataset, cue, settings.train, settings.test, settings.seed)
        for number in settings.rows:
            variant = VARIANTS[number]
            torch.manual_seed(settings.seed)
            net = InvertibleClassifier(
                dataset.shape, 10, (0, 2, 2), 32, pad=0, read_out="simplified", levels=256
            )
            series = PowerSeries(8, tol=1e-2)
            base = Independence.of(net, variant.likelihood_weight, log_det=series)
            train_once(
                net,
                splits["train"],
                splits["held"],
                report.path / f"{cue}-{number}",
                objective=Hidden(base, variant),
                seed=settings.seed,
                steps=settings.steps,
                batch_size=64,
                learning_rate=2e-3,
                warmup_steps=min(50, settings.steps // 5),
                validation_samples=500,
                validate_every=0.5,
            )
            found = measured(net, splits, settings.probed, settings.probe_steps)
            rows.append({"cue": cue, "objective": variant.name, **found})
            report.table("hiding", rows, f"{dataset.name} at half its size, a cue as in `shift`.")


def halved(dataset: Dataset) -> Dataset:
    """Images ``(N, 1, 28, 28)`` without two pixels at each border, at half the size: 12 x 12."""

    def small(split: Split) -> Split:
        inner = split.values[:, :, 2:-2, 2:-2].float()
        return replace(split, values=F.avg_pool2d(inner, 2).round().to(torch.uint8))

    parts = {name: small(getattr(dataset, name)) for name in ("train", "validation", "test")}
    return replace(dataset, **parts)
