"""Bits/dim of the families of normalizing flows after the same time (thesis, table 5.1).

All of them train on the same images with the same pixel map, batches and protocol, for the same
minutes of processor time, which other programs on the machine do not shorten; the validation part
chooses the learning rate and the optimiser, and the test part is scored once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from experiments.flows.likelihood import losses_of, train_density
from experiments.flows.models import FAMILIES
from iresflow.commands.report import Report
from iresflow.data import Dataset, Split
from iresflow.errors import NonFiniteError
from iresflow.training import presets
from iresflow.training.config import Config, OptimizerName
from iresflow.training.sections import Section, section_of
from iresflow.training.values import read_yaml

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "digits"}}


@dataclass(kw_only=True)
class Settings(Section):
    """Families."""

    seed: int = 0
    """Seed of weights, batches and noise."""
    families: tuple[str, ...] = tuple(FAMILIES)
    """Rows of the table."""
    preset: str = "digits"
    """The configuration that gives our model, the pixel map and the batch."""
    blocks: tuple[int, ...] | None = None
    """Residual blocks of ours on each scale; null for those of the preset."""
    minutes: float = 1.0
    """Of processor time, for each training."""
    rates: tuple[float, ...] = (1e-3, 1e-2)
    """Learning rates that are tried."""
    optimizers: tuple[OptimizerName, ...] = ("adam",)
    """Optimisers that are tried, for all families."""
    test: int | None = None
    """Test images; null for all."""

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise ValueError(f"unknown family {name!r}; choose from {', '.join(FAMILIES)}")


def quick(settings: Settings) -> Settings:
    """Within two minutes."""
    return replace(settings, minutes=0.05, rates=settings.rates[-1:], test=100)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Runs the experiment. Errors: as those of training and data."""
    images = data["images"]
    if images.levels is None:
        raise ValueError("the table is of images: --images.name names some")
    config = section_of(Config, read_yaml(presets.find(settings.preset)))
    if settings.blocks is not None:
        config = replace(config, model=replace(config.model, blocks=settings.blocks))
    rows: list[dict[str, Any]] = []
    for name in settings.families:
        rows.append(_row(name, settings, config, images, report))
        report.table(
            "table-5-1",
            rows,
            f"{images.name}: bits/dim after {settings.minutes:g} minutes of processor time.",
        )


def _row(
    name: str, settings: Settings, config: Config, images: Dataset, report: Report
) -> dict[str, Any]:
    family, best = FAMILIES[name], None
    published = family.published or (None, None)
    for rate, optimizer in product(settings.rates, settings.optimizers):
        trial = f"{name}, {optimizer}, rate {rate:g}"
        torch.manual_seed(settings.seed)
        model = family.make(config, images)
        try:
            fitted = train_density(
                model,
                images,
                report.path / trial.replace(", ", "-").replace(" ", "-"),
                minutes=settings.minutes,
                batch_size=config.training.batch_size,
                learning_rate=rate,
                optimizer=optimizer,
                seed=settings.seed,
            )
        except NonFiniteError as error:
            print(f"{trial}: {error}", flush=True)
            continue
        print(f"{trial}: validation {fitted.best:.4f}", flush=True)
        if best is None or fitted.best < best[0].best:
            best = fitted, model, rate, optimizer
    row: dict[str, Any] = {"family": name, "library": family.library}
    if best is None:
        numbers = dict.fromkeys(
            ("parameters", "rate", "optimizer", "steps", "validation", "test", "standard error")
        )
    else:
        fitted, model, rate, optimizer = best
        losses = losses_of(model, images, Split(images.test.values[: settings.test])).double()
        numbers = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "rate": rate,
            "optimizer": optimizer,
            "steps": fitted.steps,
            "validation": fitted.best,
            "test": float(losses.mean()),
            "standard error": float(losses.std() / len(losses) ** 0.5),
        }
    return {**row, **numbers, "MNIST, thesis": published[0], "CIFAR10, thesis": published[1]}
