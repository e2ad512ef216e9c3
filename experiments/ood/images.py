"""Flows of images asked about images from elsewhere: which scores tell them apart, and that
log-densities alone do not (Nalisnick et al., 2019)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.compose import ColumnTransformer
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor

import iresflow
from experiments.ood.outliers import outside_images
from iresflow.commands import train
from iresflow.commands.report import Report
from iresflow.commands.samples.own_samples import event_of
from iresflow.data import IMAGE_NAMES, Dataset
from iresflow.data.queries.named import named_samples
from iresflow.models import ImageFlow, pretrained
from iresflow.ood import (
    Complexity,
    DensityOfStates,
    LatentFit,
    LikelihoodRatio,
    LocalDimension,
    LogProb,
    Panel,
    Score,
    ScoreNorm,
    Scores,
    Scoring,
    Typicality,
    evaluate,
)
from iresflow.plots import histogram_figure
from iresflow.training.checkpoint import find_checkpoint, load_model
from iresflow.training.runs.known_data import load_data
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, Any]] = {}

CHUNK = 50
"""Images whose scores are kept at a time, so that what was stopped goes on."""

COLUMNS = ("values", "low", "high")
"""What is kept of scores."""


def _log(norms: np.ndarray) -> np.ndarray:
    """Of one more than norms; the lower ends of error bars may be below 0."""
    return np.log1p(np.maximum(norms, 0))


LOGARITHMS = make_pipeline(
    FunctionTransformer(_log), StandardScaler(), KernelDensity(bandwidth="scott")
)
"""Of a norm, which is positive and spreads over orders of magnitude: its density in logarithms."""

OF_THE_SECOND = make_pipeline(
    ColumnTransformer([("log", FunctionTransformer(_log), [1])], remainder="passthrough"),
    StandardScaler(),
    KernelDensity(bandwidth="scott"),
)
"""Of any statistic and a norm: their joint density, with the logarithm of the norm."""


@dataclass(kw_only=True)
class Settings(Section):
    """Images."""

    seed: int = 0
    """Of trainings, of scores, and of images that are made."""
    pairs: tuple[str, ...] = (
        "fashion-mnist:mnist,constant,noise",
        "mnist:fashion-mnist,constant,noise",
        "digits:permuted,inverted,constant,noise",
        "cifar10-subset:mnist,coloured-mnist,constant,noise",
    )
    """A packaged model or a preset whose flow is asked, and what about: data sets, or images that
    are made."""
    trained: str | None = None
    """Directory of runs of these presets, which go before packaged models of the name; what is
    neither is trained into it. None for one in the run of the experiment."""
    options: tuple[str, ...] = ("training.steps=null", "training.minutes=20")
    """Of these trainings, as iresflow train takes them after two dashes."""
    scores: tuple[str, ...] = (
        "LogProb",
        "Typicality",
        "Complexity",
        "LatentFit",
        "ScoreNorm",
        "DensityOfStates",
        "State of the score norm",
        "State of complexity and norm",
    )
    """Which ones; images are scored by each of them. There are LocalDimension and LikelihoodRatio,
    too, which cost more."""
    test: int = 2000
    """Images of each set to score, at most."""
    fit: int = 1000
    """Validation images that the scores are fitted to, at most."""
    draws: int = 5
    """Of noise and probes for an image."""
    probes: int = 2
    """In each draw."""
    background_steps: int = 1000
    """Of the training of LikelihoodRatio's background."""
    krylov: int = 8
    """Dimension of LocalDimension's Krylov spaces."""


def quick(settings: Settings) -> Settings:
    return replace(
        settings,
        pairs=("digits:inverted,constant",),
        options=("training.steps=10", "model.hidden=4", "training.validate_every=10"),
        test=40,
        fit=60,
        background_steps=5,
        krylov=3,
    )


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Trains the flows that are missing, and scores all pairs."""
    rows: list[dict[str, Any]] = []
    for pair in settings.pairs:
        preset, _, names = pair.partition(":")
        flow, dataset = _trained(preset, settings, report)
        scores = _scores(settings)
        panel = Panel(flow, list(scores.values()), dataset.validation.values[: settings.fit])
        where = report.path / "scores" / _digest(settings)
        where.mkdir(parents=True, exist_ok=True)
        event, test = event_of(flow), dataset.test.values
        if settings.test > len(test) and dataset.name in IMAGE_NAMES:
            test = named_samples(dataset.name, event)  # presets judge by the first 1000
        inside = _scored(panel, test[: settings.test], where, preset)
        for name in names.split(","):
            images = outside_images(name, event, test, settings.test, settings.seed)
            outside = _scored(panel, images, where, f"{preset}-{name}")
            rows += _rows(preset, name, list(scores), inside, outside)
            report.table("separation", rows, _CAPTION)
            figure = histogram_figure(
                list(scores),
                [part.values.numpy() for part in inside],
                [part.values.numpy() for part in outside],
                name,
            )
            report.figure(f"{preset}-{name}", figure, f"{preset}: {name}")


_CAPTION = (
    "Fitted to validation images of the flow's data alone. Intervals of 95 % by bootstrap; the "
    "error is the median half width of a score's error bar, as a share of the standard deviation "
    "inside. undecided: the share of all images whose error bar holds the threshold that 5 % of "
    "the images inside exceed."
)


def _trained(preset: str, settings: Settings, report: Report) -> tuple[ImageFlow, Dataset]:
    """The flow of a name and its data, trained where no run and no packaged model has it."""
    runs = Path(settings.trained) if settings.trained else report.path / "runs"
    found = sorted(runs.glob(f"*-{preset}"))
    if not found and preset in pretrained.names():
        packaged = iresflow.pretrained(preset)
        assert isinstance(packaged, ImageFlow)
        print(f"flow        {pretrained.described(preset)}")
        return packaged, load_data(pretrained.find(preset))
    if not found:
        given = [f"--{option}" for option in settings.options]
        options = ["--config", preset, "--seed", str(settings.seed), *given]
        if train.main([*options, "--runs", str(runs), "--name", preset]):
            raise KeyboardInterrupt
        found = sorted(runs.glob(f"*-{preset}"))
    model, progress = load_model(find_checkpoint(found[-1], "best"), torch.device("cpu"))
    assert isinstance(model, ImageFlow)
    print(f"flow        {found[-1]}, step {progress.step}, {progress.seconds / 60:.1f} minutes")
    return model, load_data(found[-1])


def _scores(settings: Settings) -> dict[str, Score]:
    scoring = Scoring(settings.draws, settings.probes, seed=settings.seed)
    states = LogProb(scoring), LatentFit(scoring), ScoreNorm(scoring)
    known: dict[str, Score] = {
        "LogProb": LogProb(scoring),
        "Typicality": Typicality(scoring),
        "Complexity": Complexity(scoring),
        "LatentFit": LatentFit(scoring),
        "ScoreNorm": ScoreNorm(scoring),
        "LocalDimension": LocalDimension(scoring, settings.krylov),
        "DensityOfStates": DensityOfStates(states),
        "State of the score norm": DensityOfStates((ScoreNorm(scoring),), LOGARITHMS),
        "State of complexity and norm": DensityOfStates(
            (Complexity(scoring), ScoreNorm(scoring)), OF_THE_SECOND
        ),
        "LikelihoodRatio": LikelihoodRatio(steps=settings.background_steps, scoring=scoring),
    }
    unknown = [name for name in settings.scores if name not in known]
    if unknown:
        raise ValueError(f"unknown score {unknown[0]!r}; choose among {', '.join(known)}")
    return {name: known[name] for name in settings.scores}


def _digest(settings: Settings) -> str:
    """Of what scores depend on: others are kept elsewhere."""
    same = replace(settings, pairs=(), test=0)
    return hashlib.sha256(f"{same} {COLUMNS}".encode()).hexdigest()[:12]


def _scored(panel: Panel, images: Tensor, where: Path, name: str) -> list[Scores]:
    """Scores of images, of which files keep what was computed."""
    parts: list[list[Scores]] = []
    for first in range(0, len(images), CHUNK):
        chunk = images[first : first + CHUNK]
        file = where / f"{name}-{first}-{len(chunk)}.pt"
        if not file.is_file():
            found = panel.scores(chunk)
            torch.save([[getattr(part, name) for name in COLUMNS] for part in found], file)
        parts.append([Scores(*columns) for columns in torch.load(file, weights_only=True)])
        print(f"scored      {name}: {first + len(chunk)} of {len(images)}", flush=True)
    return [
        Scores(*(torch.cat([getattr(part, name) for part in score]) for name in COLUMNS))
        for score in zip(*parts, strict=True)
    ]


def _rows(
    preset: str,
    name: str,
    titles: Sequence[str],
    inside: Sequence[Scores],
    outside: Sequence[Scores],
) -> list[dict[str, Any]]:
    rows = []
    for title, a, b in zip(titles, inside, outside, strict=True):
        told = evaluate(a.values, b.values)
        threshold = a.threshold()
        near = [part.decide(threshold).undecided for part in (a, b)]
        rows.append(
            {
                "inside": preset,
                "outside": name,
                "score": title,
                "AUROC": told.auroc,
                "low": told.auroc_interval[0],
                "high": told.auroc_interval[1],
                "AUPR": told.aupr,
                "FPR95": told.fpr95,
                "error": float(torch.cat([a.errors, b.errors]).median() / a.values.std()),
                "undecided": float(torch.cat(near).double().mean()),
            }
        )
        print(f"{preset} | {name} | {title}: AUROC {told.auroc:.4f}", flush=True)
    return rows
