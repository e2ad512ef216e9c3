"""Few labels (the outlook of thesis, section 5.6): a flow of classes that learns from images
without labels too, beside networks that learn from the labelled ones alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from experiments.classifiers.training import error_of, labelled, train_once
from iresflow import ImageFlow, InvertibleClassifier, PowerSeries
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import predict
from iresflow.training.objectives.generative import Generative, MixtureLikelihood, classified
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "chosen", "quick", "run"]

DATA = {"images": {"name": "digits"}}


@dataclass(kw_only=True)
class Settings(Section):
    """Labels."""

    seed: int = 0
    """Seed of the first repetition."""
    seeds: int = 3
    """Repetitions, each with other labels and weights."""
    labels: tuple[int, ...] = (5, 20)
    """Labels a class."""
    blocks: tuple[int, ...] = (1, 2, 1)
    """Residual blocks of the flow and of the supervised network."""
    hidden: int = 24
    """Channels in their branches."""
    terms: int = 8
    """Terms of the series of log-determinants, at most."""
    steps: int = 600
    """Of each training."""
    test: int | None = None
    """Test images; null for all."""


def quick(settings: Settings) -> Settings:
    return replace(settings, seeds=1, labels=(20,), blocks=(1, 1, 0), hidden=16, steps=40, test=60)


def chosen(labels: Tensor, each: int, classes: int, seed: int) -> Tensor:
    """Places of so many samples of each class, at random.

    Raises:
        ValueError: a class has fewer.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    places = [order[labels[order] == c][:each] for c in range(classes)]
    if short := [c for c, found in enumerate(places) if len(found) < each]:
        raise ValueError(f"class {short[0]} has fewer than {each} samples")
    return torch.cat(places)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Trains all models with each number of labels."""
    dataset = data["images"]
    rows: list[dict[str, Any]] = []
    for each in settings.labels:
        errors: dict[str, list[float]] = {}
        for seed in range(settings.seed, settings.seed + settings.seeds):
            for name, wrong in _errors(settings, dataset, each, seed, report).items():
                errors.setdefault(name, []).append(wrong)
                print(f"{each} labels, seed {seed}, {name}: error {wrong:.4f}", flush=True)
        rows += [
            {
                "labels a class": each,
                "model": name,
                "test error": mean(values),
                "standard error over repetitions": stdev(values) / len(values) ** 0.5
                if len(values) > 1
                else None,
                "repetitions": len(values),
            }
            for name, values in errors.items()
        ]
    report.table(
        "labels",
        rows,
        f"{dataset.name}, {len(dataset.train)} training images of which a few have labels. No "
        "model is chosen by validation: there are no labels for it.",
    )


def _errors(
    settings: Settings, dataset: Dataset, each: int, seed: int, report: Report
) -> dict[str, float]:
    train, test = labelled(dataset.train), labelled(dataset.test, settings.test)
    assert train.labels is not None and test.labels is not None
    classes = len(dataset.classes)
    places = chosen(train.labels, each, classes, seed)
    few = Batch.of(train, places)
    weights = torch.full((len(train), classes), 1 / classes)
    weights[places] = torch.eye(classes)[train.labels[places]]
    options: dict[str, Any] = {
        "seed": seed,
        "steps": settings.steps,
        "batch_size": 32,
        "learning_rate": 5e-3,
        "decay_steps": 0.3,
        "ema_decay": 0.99,
        "validate_every": settings.steps,
    }
    where = report.path / f"{each}-labels-{seed}"
    errors = {}
    every = Batch(train.values, weights)
    mixture = MixtureLikelihood(len(train) / len(places))
    for short, name, samples, objective in (
        ("mixture", "flow of classes, with the unlabelled images", every, mixture),
        ("generative", "flow of classes, the labelled images alone", few, Generative()),
    ):
        torch.manual_seed(seed)
        flow = ImageFlow(
            dataset.shape,
            settings.blocks,
            settings.hidden,
            levels=dataset.levels or 256,
            context_dim=classes,
            coeff=0.9,
            factor_out=False,
            log_det=PowerSeries(settings.terms, tol=1e-2),
        )
        train_once(flow, samples, None, where / short, objective=objective, **options)
        errors[name] = error_of(classified(flow, test.values), test.labels)[0]
    torch.manual_seed(seed)
    levels = dataset.levels or 256
    net = InvertibleClassifier(
        dataset.shape, classes, settings.blocks, settings.hidden, pad=3, levels=levels
    )
    train_once(net, few, None, where / "supervised", **options)
    errors["supervised network, the labelled images alone"] = error_of(
        predict(net, test.values), test.labels
    )[0]
    return errors
