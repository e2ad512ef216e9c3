"""Bits/dim of the families of normalizing flows after the same time (thesis, table 5.1).

All of them train on the same images with the same pixel map, batches and protocol, for the same
minutes of processor time, which other programs on the machine do not shorten; the validation part
chooses the learning rate and the optimiser, and the test part is scored once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from experiments.flows.likelihood import losses_of, train_best
from experiments.flows.models import FAMILIES
from iresflow.commands.report import Report
from iresflow.data import Dataset, Split
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
    optimizers: tuple[OptimizerName, ...] = ("adam", "muon")
    """Optimisers that are tried, for all families."""
    test: int | None = None
    """Test images; null for all."""

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                raise ValueError(f"unknown family {name!r}; choose from {', '.join(FAMILIES)}")


def quick(settings: Settings) -> Settings:
    """Within two minutes."""
    few = {"rates": settings.rates[-1:], "optimizers": settings.optimizers[:1]}
    return replace(settings, minutes=0.05, test=100, **few)


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
    family = FAMILIES[name]
    published = family.published or (None, None)
    best = train_best(
        name,
        lambda: family.make(config, images),
        images,
        report.path,
        settings,
        config.training.batch_size,
    )
    row: dict[str, Any] = {"family": name, "library": family.library}
    if best is None:
        numbers = dict.fromkeys(
            ("parameters", "rate", "optimizer", "steps", "validation", "test", "standard error")
        )
    else:
        losses = losses_of(best.model, images, Split(images.test.values[: settings.test])).double()
        numbers = {
            "parameters": sum(p.numel() for p in best.model.parameters()),
            "rate": best.rate,
            "optimizer": best.optimizer,
            "steps": best.fitted.steps,
            "validation": best.fitted.best,
            "test": float(losses.mean()),
            "standard error": float(losses.std() / len(losses) ** 0.5),
        }
    return {**row, **numbers, "MNIST, thesis": published[0], "CIFAR10, thesis": published[1]}
