"""Classification error and invertibility by the Lipschitz limit (thesis, table 4.1, figures 4.2 to
4.4, and the costs of section 4.3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.classifiers.limits_figures import (
    draw_iterations,
    draw_norms,
    draw_reconstructions,
)
from experiments.classifiers.limits_measures import (
    ITERATIONS,
    costs_of,
    errors_by_iterations,
    norms_of,
    norms_of_blocks,
    reconstructed,
    row_of_invertible,
    row_of_ordinary,
)
from experiments.classifiers.networks import ordinary
from experiments.classifiers.training import labelled, train_once
from iresflow import InvertibleClassifier
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.data.images.augment import Augmentation, Flip, Shift
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

SCHEDULE: dict[str, Any] = {
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "learning_rate": 0.1,
    "schedule": "steps",
    "drops": (0.3, 0.6, 0.8),
    "drop": 0.2,
    "ema_decay": 0.0,
}
"""Of appendix A.1, in parts of the training."""


@dataclass(kw_only=True)
class Settings(Section):
    """Limits."""

    seed: int = 0
    """Seed of weights and order."""
    coeffs: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5)
    """Limits of each layer's norm (table 4.1)."""
    others: bool = True
    """Whether ordinary residual networks and one without a limit are trained too."""
    blocks: tuple[int, ...] = (0, 4, 4)
    """Residual blocks on each scale; the thesis has 7 on each for MNIST, 13 for CIFAR10."""
    hidden: int = 48
    """Channels in the branches."""
    channels: int = 4
    """Channels after padding; 16 in section 4.3.1, where no squeeze comes first."""
    minutes: float = 30.0
    """Of the training of each network."""
    steps: int | None = None
    """Of that, instead of minutes."""
    batch_size: int = 128
    """Samples in a step."""
    validate_every: float = 0.1
    """Parts of the training after which the network is validated."""
    shift: int = 2
    """Pixels by which training images are shifted, at most."""
    flip: bool = False
    """Whether they are mirrored (colour images)."""
    train: int | None = None
    """Training images; null for all."""
    test: int | None = None
    """Test images; null for all."""
    inverted: int = 100
    """Test images that are sent through the inverse."""


def quick(settings: Settings) -> Settings:
    small = replace(settings, coeffs=(0.9, 0.5), blocks=(0, 1, 1), hidden=16)
    return replace(small, steps=12, batch_size=32, train=600, test=100, inverted=8)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Trains one network after another, and measures each."""
    bench = _Bench(settings, data["images"], report)
    if settings.others:
        for name, squeezed in (("ResNet", False), ("vanilla, BatchNorm", True)):
            bench.measure_ordinary(name, squeezed)
        bench.measure_invertible("vanilla", None)
    for coeff in settings.coeffs:
        bench.measure_invertible(f"c = {coeff:g}", coeff)


class _Bench:
    """Where networks are trained and measured one by one; what is known is written each time."""

    def __init__(self, settings: Settings, dataset: Dataset, report: Report) -> None:
        self.settings, self.dataset, self.report = settings, dataset, report
        self.train = labelled(dataset.train, settings.train)
        self.held = labelled(dataset.validation, settings.train)
        self.test = labelled(dataset.test, settings.test)
        self.some = Batch.of(self.test, slice(settings.inverted))
        self.rows: list[dict[str, Any]] = []
        self.costs: list[dict[str, Any]] = []
        self.norms: dict[str, list[float]] = {}
        self.images: dict[str, Tensor] = {}
        self.curves: dict[str, list[float]] = {}

    def measure_ordinary(self, name: str, squeezed: bool) -> None:
        """Of a network that can't be inverted, with BatchNorm."""
        settings, dataset = self.settings, self.dataset
        torch.manual_seed(settings.seed)
        # As many channels on the last scale as with squeezes, which multiply by four.
        wider = 1 if squeezed else 2 ** (len(settings.blocks) - 1)
        inner = ordinary(
            dataset.shape,
            len(dataset.classes),
            settings.blocks,
            settings.channels * wider,
            settings.hidden,
            invertible=squeezed,
        )
        network = _OfIntegers(inner, dataset.levels or 256)
        self._train(network, name)
        self.rows.append(row_of_ordinary(name, network, self.test))
        self.norms[name] = norms_of(network, dataset.shape)
        self._tell(name, network)

    def measure_invertible(self, name: str, coeff: float | None) -> None:
        """Of an invertible network, or of one without a limit: None."""
        settings, dataset = self.settings, self.dataset
        torch.manual_seed(settings.seed)
        net = InvertibleClassifier(
            dataset.shape,
            len(dataset.classes),
            settings.blocks,
            settings.hidden,
            pad=settings.channels - dataset.shape[0],
            coeff=coeff or 0.9,
            vanilla=coeff is None,
            levels=dataset.levels or 256,
        )
        self._train(net, name)
        self.rows.append(row_of_invertible(name, net, self.test, settings.inverted))
        self.norms[name] = norms_of_blocks(net)
        first = self.some.values[:8]
        self.images.setdefault("original", net.prepare(first))
        self.images[name] = reconstructed(net, first)
        self.curves[name] = errors_by_iterations(net, self.some.values)
        self._tell(name, net)

    def _train(self, network: nn.Module, name: str) -> None:
        settings = self.settings
        length = {"steps": settings.steps} if settings.steps else {"minutes": settings.minutes}
        changes: tuple[Augmentation, ...] = (Flip(),) if settings.flip else ()
        if settings.shift:
            changes = (*changes, Shift(settings.shift))
        train_once(
            network,
            self.train,
            self.held,
            self.report.path / name.replace(" ", "").replace(",", "-"),
            objective=CrossEntropy(),
            augment=changes,
            seed=settings.seed,
            **SCHEDULE,
            **length,
            batch_size=settings.batch_size,
            validate_every=settings.validate_every,
            warmup_steps=min(100, (settings.steps or 1000) // 10),
            validation_samples=5000,
        )

    def _tell(self, name: str, network: nn.Module) -> None:
        step = Batch.of(self.train, slice(self.settings.batch_size))
        self.costs.append(costs_of(name, network, step, self.some))
        report = self.report
        print(self.rows[-1], self.costs[-1], flush=True)
        report.table("errors", self.rows, self._caption())
        report.table("costs", self.costs, "Processor time on this machine (section 4.3.2).")
        figure = draw_norms(self.norms)
        report.figure("norms", figure, "Largest singular value of each layer (figure 4.2)")
        if not self.curves:
            return
        figure = draw_reconstructions(self.images)
        report.figure("reconstructions", figure, "Reconstructions (figure 4.3)")
        figure = draw_iterations(ITERATIONS, self.curves)
        report.figure("iterations", figure, "Error against iterations (figure 4.4)")
        report.table(
            "iterations",
            [
                {"network": n, **{f"k = {k}": e for k, e in zip(ITERATIONS, curve, strict=True)}}
                for n, curve in self.curves.items()
            ],
            "Median distance of a reconstruction by k fixed-point iterations in each block.",
        )

    def _caption(self) -> str:
        settings = self.settings
        goal = f"{settings.steps} steps" if settings.steps else f"{settings.minutes:g} minutes"
        return (
            f"{self.dataset.name}, {sum(settings.blocks)} blocks, {goal} each (thesis: 21 or 39 "
            "blocks, 200 epochs). Errors with their binomial standard errors. An inverse is "
            "guaranteed where the certificate holds."
        )


class _OfIntegers(nn.Module):
    """A network of floats in [0, 1] for integer images."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.float() + 0.5) / self.levels)
