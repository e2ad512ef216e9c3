"""Metamers: images with the logits of one image and the nuisance of another (thesis, definition
6.8, figures 6.1 and 6.5), of networks trained by cross entropy and by independence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.classifiers.networks import KINDS, Recipe, convolutional, train_kind
from experiments.classifiers.training import error_of, labelled, train_once
from iresflow import ImageFlow, InvertibleClassifier
from iresflow.commands.report import Report
from iresflow.commands.samples.metamers import others
from iresflow.data import Dataset
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import CrossEntropy, predict
from iresflow.training.objectives.generative import Generative, classified
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "interpolated", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far the nuisance goes from the image's own to the reference's."""


@dataclass(kw_only=True)
class Settings(Section):
    """Metamers."""

    seed: int = 0
    """Seed of weights and order."""
    train: int | None = None
    """Training images; null for all."""
    test: int = 1000
    """Test images that metamers are made of."""
    judge_steps: int = 2000
    """Training steps of the convolutional judge."""
    flow_steps: int = 3000
    """Training steps of the flow of classes; 0 for no such judge."""
    flow_judged: int = 200
    """Metamers that the flow judges."""
    recipe: Recipe = field(default_factory=Recipe)


def quick(settings: Settings) -> Settings:
    recipe = replace(settings.recipe, steps=25, blocks=(0, 1, 1), hidden=16, batch_size=64)
    return replace(settings, train=1000, test=100, judge_steps=60, flow_steps=0, recipe=recipe)


def interpolated(net: InvertibleClassifier, x: Tensor, reference: Tensor, share: float) -> Tensor:
    """Images ``(B, C, H, W)`` with the logits of x and a nuisance between both (figure 6.5).

    Arguments:
        net: With a simplified read-out.
        x, reference: ``(B, C, H, W)``.
        share: 0 for the nuisance of x, 1 for that of the reference.
    """
    semantic, own = net.split(x)
    other = net.split(reference)[1]
    return net.inverse(semantic, own + share * (other - own))


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Trains both kinds and their judges, and makes metamers."""
    dataset = data["images"]
    train, held = labelled(dataset.train, settings.train), labelled(dataset.validation)
    test = labelled(dataset.test, settings.test)
    judge = _judge(settings, dataset, train, held, report)
    flow = _flow(settings, dataset, train, held, report) if settings.flow_steps else None
    rows, grids = [], {}
    for kind in KINDS:
        net = train_kind(
            kind, settings.recipe, dataset, train, held, report.path / kind, settings.seed
        )
        row, grids[kind] = _measured(net, judge, flow, test, settings)
        print(row, flush=True)
        rows.append({"objective": kind, **row})
    report.table(
        "metamers",
        rows,
        f"{dataset.name}: each test image with the nuisance of one of another class. The judges "
        "are a convolutional network, and a flow of classes by Bayes' rule: what they call the "
        "metamers, the class of the nuisance or that of the logits.",
    )
    report.figure("metamers", _figure(grids), "Metamers (figures 6.1 and 6.5)")


def _judge(
    settings: Settings, dataset: Dataset, train: Batch, held: Batch, report: Report
) -> nn.Module:
    torch.manual_seed(settings.seed + 1)
    judge = convolutional(dataset.shape, len(dataset.classes))
    level = dataset.levels or 256

    def floats(samples: Batch) -> Batch:
        return Batch((samples.values.float() + 0.5) / level, samples.labels)

    train_once(
        judge,
        floats(train),
        floats(held),
        report.path / "judge",
        objective=CrossEntropy(),
        steps=settings.judge_steps,
        batch_size=128,
        learning_rate=1e-3,
    )
    return judge


def _flow(
    settings: Settings, dataset: Dataset, train: Batch, held: Batch, report: Report
) -> ImageFlow:
    torch.manual_seed(settings.seed + 2)
    flow = ImageFlow(
        dataset.shape,
        (0, 4, 2),
        32,
        levels=dataset.levels or 256,
        context_dim=len(dataset.classes),
        factor_out=False,
    )
    train_once(
        flow,
        train,
        held,
        report.path / "flow",
        objective=Generative(),
        steps=settings.flow_steps,
        batch_size=64,
        learning_rate=5e-3,
        validate_every=0.5,
        validation_samples=200,
    )
    return flow


@torch.no_grad()
def _measured(
    net: InvertibleClassifier,
    judge: nn.Module,
    flow: ImageFlow | None,
    test: Batch,
    settings: Settings,
) -> tuple[dict[str, Any], list[Tensor]]:
    assert test.labels is not None
    x = net.prepare(test.values)
    order = others(test.labels)
    found = net.metamer(x, x[order])
    error, _ = error_of(predict(net, test.values), test.labels)
    known, _ = error_of(predict(judge, x), test.labels)
    said = predict(judge, found.images.clamp(0, 1)).argmax(1)
    row = {
        "test error": error,
        "judge's error on images": known,
        "largest residual": float(found.residual.max()),
        "same decision": float(found.same_decision.double().mean()),
        "judge: class of the nuisance": float((said == test.labels[order]).double().mean()),
        "judge: class of the logits": float((said == test.labels).double().mean()),
        "outside of [0, 1] by, median": float(found.outside.median()),
    }
    if flow is not None:
        some = slice(settings.flow_judged)
        images = flow.quantize(found.images[some].clamp(0, 1))
        by_flow = classified(flow, images).argmax(1)
        plain = classified(flow, test.values[some]).argmax(1)
        labels = test.labels[some]
        row |= {
            "flow's error on images": float((plain != labels).double().mean()),
            "flow: class of the nuisance": float(
                (by_flow == test.labels[order][some]).double().mean()
            ),
            "flow: class of the logits": float((by_flow == labels).double().mean()),
        }
    first = torch.arange(min(8, len(x)))
    partners = x[order][first]
    steps = [interpolated(net, x[first], partners, share) for share in SHARES]
    return row, [*steps, partners]


def _figure(grids: Mapping[str, list[Tensor]]) -> Figure:
    figure = Figure(figsize=(5.2 * len(grids), 4.4), layout="constrained")
    for axes, (kind, rows) in zip(figure.subplots(1, len(grids)), grids.items(), strict=True):
        framed = [F.pad(row.clamp(0, 1), (0, 1, 0, 1), value=1.0) for row in rows]  # white gaps
        picture = torch.cat([torch.cat(list(row), dim=2) for row in framed], dim=1)
        picture = picture.permute(1, 2, 0).float()
        axes.imshow(picture.squeeze(2).numpy(), cmap="gray")
        height = picture.shape[0] / len(rows)
        names = [f"{share:g}" for share in SHARES] + ["reference"]
        axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], names)
        axes.set_xticks([])
        axes.set_title(kind, fontsize=11)
    figure.supylabel("share of the reference's nuisance", fontsize=9)
    return figure
