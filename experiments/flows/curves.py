"""Bits/dim of the digits against seconds of training, beside Glow, splines and MAF.

All train by one protocol for the same processor time, at a constant learning rate: so a longer run
begins as a shorter one, and one run is a whole curve. At each validation the averaged weights are
scored; where they are the best so far, so are the test images. The rate of each model is the
better one after a short run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.peers import CASES, Density
from experiments.flows.likelihood import losses_of, train_density
from experiments.flows.models import preset_flow
from experiments.flows.records import Records
from iresflow import Flow
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.errors import NonFiniteError
from iresflow.training import presets
from iresflow.training.config import Config
from iresflow.training.objectives.base import Score
from iresflow.training.sections import Section, section_of
from iresflow.training.values import read_yaml

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "digits"}}

PEERS = CASES["digits"].peers

OURS = "iresflow"


@dataclass(kw_only=True)
class Settings(Section):
    """Curves."""

    models: tuple[str, ...] = (
        OURS,
        "normflows Glow, larger",
        "zuko MAF, matched",
        "zuko NSF coupling, its size",
    )
    """Rows of the table."""
    preset: str = "digits"
    """The configuration that gives our model, and the batch of all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, batches and noise."""
    marks: tuple[float, ...] = (10.0, 60.0, 180.0)
    """Seconds of processor time that the table is of; the last is what a training takes."""
    every: float = 2.5
    """Seconds between validations."""
    rates: tuple[float, ...] = (3e-3, 1e-2)
    """Learning rates that are tried."""
    rate_seconds: float = 10.0
    """Of the trainings that choose the rate, of the first seed."""
    patience: int = 8
    """Validations without a better score after which a training ends: its curve stays level."""

    @property
    def seed(self) -> int:
        """Of the first training."""
        return self.seeds[0]

    def __post_init__(self) -> None:
        known = (OURS, *PEERS)
        for name in self.models:
            if name not in known:
                raise ValueError(f"unknown model {name!r}; choose from {', '.join(known)}")
        for name, values in (("seeds", self.seeds), ("marks", self.marks), ("rates", self.rates)):
            if not values:
                raise ValueError(f"{name} is empty: name at least one")
        if list(self.marks) != sorted(self.marks) or not self.every <= self.marks[0]:
            raise ValueError(f"marks must rise from {self.every} on, got {self.marks}")


def quick(settings: Settings) -> Settings:
    """Within a minute."""
    return replace(
        settings,
        models=settings.models[:2],
        seeds=settings.seeds[:1],
        marks=(0.5, 1.0),
        every=0.25,
        rates=settings.rates[-1:],
    )


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Runs the experiment. Errors: as those of training and data."""
    images = data["images"]
    if images.levels is None or images.shape != (1, 8, 8):
        raise ValueError("the models are of the digits: --images.name digits")
    config = section_of(Config, read_yaml(presets.find(settings.preset)))
    records = Records(report.path / "records.jsonl")
    train = partial(_trained, settings=settings, config=config, images=images, records=records)
    rates = {name: _rate_of(name, settings, train) for name in settings.models}
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.models}
    for seed in settings.seeds:
        for name in settings.models:
            curves[name].append(train(name, rates[name], seed, settings.marks[-1]))
            done = {other: found for other, found in curves.items() if found}
            report.table(
                "curves",
                [_row(other, rates[other], found, settings) for other, found in done.items()],
                "Test bits/dim of the weights that validation chose up to each mark: means over "
                "seeds with their standard error, and the mean standard error over images.",
            )
            report.figure("curves", _figure(done, settings))


def _rate_of(name: str, settings: Settings, train: Callable[..., dict[str, Any]]) -> float:
    """The rate that is best by validation after a short run; the only one without a run."""
    if len(settings.rates) == 1:
        return settings.rates[0]
    best: dict[float, float] = {}
    for rate in settings.rates:
        found = train(name, rate, settings.seed, settings.rate_seconds)
        best[rate] = min(found["validation"], default=math.inf)
    return min(best, key=lambda rate: best[rate])


def _trained(
    name: str,
    rate: float,
    seed: int,
    seconds: float,
    *,
    settings: Settings,
    config: Config,
    images: Dataset,
    records: Records,
) -> dict[str, Any]:
    """Validation scores each `every` seconds, and test scores where they were the best so far."""

    def compute() -> dict[str, Any]:
        torch.manual_seed(seed)
        model = preset_flow(config, images) if name == OURS else PEERS[name]()
        curve: dict[str, list[Any]] = {"validation": [], "test": [], "test error": []}
        steps = 0

        def note(step: int, average: nn.Module, score: Score | None) -> None:
            nonlocal steps
            assert score is not None and isinstance(average, Flow | Density)
            steps, better = step, score.value < min(curve["validation"], default=math.inf)
            curve["validation"].append(score.value)
            if better:
                losses = losses_of(average, images, images.test).double()
                numbers = [float(losses.mean()), float(losses.std() / len(losses) ** 0.5)]
            else:
                numbers = [curve["test"][-1], curve["test error"][-1]]
            curve["test"].append(numbers[0])
            curve["test error"].append(numbers[1])

        try:
            train_density(
                model,
                images,
                None,
                minutes=seconds / 60,
                batch_size=config.training.batch_size,
                learning_rate=rate,
                seed=seed,
                validate_every=settings.every / seconds,
                decay_steps=0,
                patience=settings.patience,
                on_validation=note,
            )
        except NonFiniteError as error:
            print(f"{name}, rate {rate:g}, seed {seed}: {error}", flush=True)
        best = min(curve["validation"], default=math.inf)
        print(f"{name}, rate {rate:g}, seed {seed}: {steps} steps, {best:.4f}", flush=True)
        count = sum(p.numel() for p in model.parameters())
        return {"parameters": count, "steps": steps, **curve}

    return records.result(f"{name} {rate:g} {seed} {seconds:g}", compute)


def _at(curve: Mapping[str, Any], seconds: float, every: float, column: str) -> float:
    """What a training had reached after so many seconds; NaN for one that failed before."""
    known: list[float] = curve[column][: round(seconds / every)]
    return known[-1] if known else math.nan


def _row(
    name: str, rate: float, curves: list[dict[str, Any]], settings: Settings
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": name,
        "parameters": curves[0]["parameters"],
        "rate": rate,
        "seeds": len(curves),
        "steps": mean(curve["steps"] for curve in curves),
    }
    for mark in settings.marks:
        scores = [_at(curve, mark, settings.every, "test") for curve in curves]
        errors = [_at(curve, mark, settings.every, "test error") for curve in curves]
        row |= {
            f"{mark:g} s": mean(scores),
            f"{mark:g} s, over seeds": stdev(scores) / len(scores) ** 0.5 if scores[1:] else None,
            f"{mark:g} s, over images": mean(errors),
        }
    return row


def _figure(curves: Mapping[str, list[dict[str, Any]]], settings: Settings) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    count = round(settings.marks[-1] / settings.every)
    seconds = [settings.every * (i + 1) for i in range(count)]
    for place, (name, found) in enumerate(curves.items()):
        for number, curve in enumerate(found):
            scores = [_at(curve, s, settings.every, "test") for s in seconds]
            label = name if number == 0 else None
            axes.plot(seconds, scores, color=f"C{place}", linewidth=1.2, label=label)
    lowest = min(min(c["test"], default=math.inf) for found in curves.values() for c in found)
    axes.set(xlabel="seconds of processor time", ylabel="test bits/dim", xscale="log")
    axes.set_ylim(lowest - 0.03, lowest + 0.6)
    ticks = [settings.every * 2**i for i in range(int(math.log2(count)) + 1)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    return figure
