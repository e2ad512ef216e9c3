"""Classification error and invertibility by the Lipschitz limit (thesis, table 4.1, figures 4.2 to
4.4, and the costs of section 4.3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from experiments.classifiers.limits_figures import (
    draw_iterations,
    draw_norms,
    draw_reconstructions,
)
from experiments.classifiers.networks import ordinary
from experiments.classifiers.training import error_of, labelled, train_once
from iresflow import InvertibleClassifier
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.data.images.augment import Augmentation, Flip, Shift
from iresflow.lipschitz import NormalizedConv2d, Unlimited
from iresflow.models import iterate_inverse
from iresflow.training.evaluation.classification import classification_of, inverted
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import CrossEntropy, predict
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

ITERATIONS = (0, 1, 2, 3, 5, 8, 12, 16, 20, 30, 50, 100)
"""Fixed-point iterations of figure 4.4."""

SCHEDULE: dict[str, Any] = {
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "learning_rate": 0.1,
    "schedule": "steps",
    "drops": (0.3, 0.6, 0.8),
    "drop": 0.2,
    "ema_decay": 0.0,
    "validate_every": 0.1,
}
"""Of appendix A.1, in parts of the training."""


@dataclass(kw_only=True)
class Settings(Section):
    """Limits."""

    seed: int = 0
    """Seed of weights and order."""
    coeffs: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5)
    """Limits of each layer's norm (table 4.1)."""
    ordinary: bool = True
    """Whether ordinary residual networks are trained too."""
    blocks: tuple[int, ...] = (2, 2, 2)
    """Residual blocks on each scale; the thesis has 7 on each for MNIST, 13 for CIFAR10."""
    hidden: int = 32
    """Channels in the branches."""
    channels: int = 16
    """Channels after padding (section 4.3.1)."""
    minutes: float = 30.0
    """Of the training of each network."""
    steps: int | None = None
    """Of that, instead of minutes."""
    batch_size: int = 128
    """Samples in a step."""
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
    small = replace(settings, coeffs=(0.9, 0.5), blocks=(0, 1, 1), hidden=16, channels=4)
    return replace(small, steps=12, batch_size=32, train=600, test=100, inverted=8)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Trains one network after another, and measures each."""
    dataset = data["images"]
    splits = {
        "train": labelled(dataset.train, settings.train),
        "held": labelled(dataset.validation, settings.train),
        "test": labelled(dataset.test, settings.test),
    }
    rows: list[dict[str, Any]] = []
    norms: dict[str, list[float]] = {}
    nets: dict[str, InvertibleClassifier] = {}
    for name, squeezed in (("ResNet", False), ("vanilla, BatchNorm", True)):
        if settings.ordinary:
            network = _ordinary(settings, dataset, splits, report.path, name, squeezed)
            rows.append(_row_of_ordinary(name, network, splits["test"]))
            norms[name] = _norms_of(network, dataset.shape)
            print(rows[-1], flush=True)
    for coeff in (None, *settings.coeffs):
        name = "vanilla" if coeff is None else f"c = {coeff:g}"
        nets[name] = _invertible(settings, dataset, splits, report.path, name, coeff)
        rows.append(_row(name, nets[name], splits["test"], settings))
        norms[name] = [
            layer.bound().upper
            for _, block in nets[name].blocks()
            for layer in block.branch.layers
        ]
        print(rows[-1], flush=True)
    report.table("errors", rows, _caption(dataset, settings))
    report.figure("norms", draw_norms(norms), "Largest singular value of each layer (figure 4.2)")
    images = splits["test"].values[: min(8, settings.inverted)]
    shown = {name: _reconstructed(net, images) for name, net in nets.items()}
    figure = draw_reconstructions(nets["vanilla"].prepare(images), shown)
    report.figure("reconstructions", figure, "Reconstructions (figure 4.3)")
    curves = {
        n: _curve(net, splits["test"].values[: settings.inverted]) for n, net in nets.items()
    }
    figure = draw_iterations(ITERATIONS, curves)
    report.figure("iterations", figure, "Error against iterations (figure 4.4)")
    report.table(
        "iterations",
        [
            {"network": name, **{f"k = {k}": e for k, e in zip(ITERATIONS, curve, strict=True)}}
            for name, curve in curves.items()
        ],
        "Median distance of a reconstruction by k fixed-point iterations in each block.",
    )
    costs = [_costs(name, net, splits, settings) for name, net in nets.items()]
    report.table("costs", costs, "Processor time on this machine (section 4.3.2).")


def _caption(dataset: Dataset, settings: Settings) -> str:
    goal = f"{settings.steps} steps" if settings.steps else f"{settings.minutes:g} minutes each"
    return (
        f"{dataset.name}, {sum(settings.blocks)} blocks, {goal} (thesis: 21 or 39 blocks, 200 "
        "epochs). Errors with their binomial standard errors. An inverse is guaranteed where the "
        "certificate holds."
    )


def _options(settings: Settings) -> dict[str, Any]:
    length = {"steps": settings.steps} if settings.steps else {"minutes": settings.minutes}
    changes: tuple[Augmentation, ...] = (Flip(),) if settings.flip else ()
    if settings.shift:
        changes = (*changes, Shift(settings.shift))
    warm_up = min(100, (settings.steps or 1000) // 10)
    return {
        **SCHEDULE,
        **length,
        "augment": changes,
        "batch_size": settings.batch_size,
        "warmup_steps": warm_up,
        "validation_samples": 5000,
    }


def _invertible(
    settings: Settings,
    dataset: Dataset,
    splits: Mapping[str, Batch],
    path: Path,
    name: str,
    coeff: float | None,
) -> InvertibleClassifier:
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
    where = path / name.replace(" ", "")
    train_once(
        net, splits["train"], splits["held"], where, seed=settings.seed, **_options(settings)
    )
    return net


@torch.no_grad()
def _row(name: str, net: InvertibleClassifier, test: Batch, settings: Settings) -> dict[str, Any]:
    score, certificate = classification_of(net, test), net.certify()
    back = inverted(net, test.values[: settings.inverted])
    return {
        "network": name,
        "error in %": 100 * score.error,
        "+-": 100 * score.error_error,
        "guaranteed inverse": "yes" if certificate else "no",
        "largest bound of a block": certificate.largest,
        "reconstruction, mean distance": back.mean_error,
        "came back": back.converged,
        "certified radius, median": score.radius,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


class _OfIntegers(nn.Module):
    """A network of floats in [0, 1] for integer images."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.float() + 0.5) / self.levels)


def _ordinary(
    settings: Settings,
    dataset: Dataset,
    splits: Mapping[str, Batch],
    path: Path,
    name: str,
    squeezed: bool,
) -> nn.Module:
    torch.manual_seed(settings.seed)
    network = _OfIntegers(
        ordinary(
            dataset.shape,
            len(dataset.classes),
            settings.blocks,
            settings.channels,
            invertible=squeezed,
        ),
        dataset.levels or 256,
    )
    where = path / name.replace(" ", "").replace(",", "-")
    train_once(
        network,
        splits["train"],
        splits["held"],
        where,
        objective=CrossEntropy(),
        seed=settings.seed,
        **_options(settings),
    )
    return network


def _row_of_ordinary(name: str, network: nn.Module, test: Batch) -> dict[str, Any]:
    assert test.labels is not None
    wrong, spread = error_of(predict(network, test.values), test.labels)
    return {
        "network": name,
        "error in %": 100 * wrong,
        "+-": 100 * spread,
        "guaranteed inverse": "no",
        "largest bound of a block": None,
        "reconstruction, mean distance": None,
        "came back": None,
        "certified radius, median": None,
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _norms_of(network: nn.Module, shape: tuple[int, ...]) -> list[float]:
    """Certified norms of all convolutions of stride 1 inside residual blocks, in order."""
    sizes: dict[nn.Module, tuple[int, int]] = {}
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = (inputs[0].shape[2], inputs[0].shape[3])

    hooks = [module.register_forward_pre_hook(note) for module in convolutions]
    with torch.no_grad():
        network(torch.zeros(2, *shape, dtype=torch.int32))
    for hook in hooks:
        hook.remove()
    bounds = []
    for module in convolutions:
        if module.stride != (1, 1):
            continue
        inputs, outputs, kernel = module.in_channels, module.out_channels, module.kernel_size[0]
        layer = NormalizedConv2d(
            inputs, outputs, int(kernel), sizes[module], coeff=0.9, normalization=Unlimited()
        )
        with torch.no_grad():
            layer.weight.copy_(module.weight.reshape(layer.weight.shape))
        bounds.append(layer.eval().bound().upper)
    return bounds


@torch.no_grad()
def _reconstructed(net: InvertibleClassifier, images: Tensor) -> Tensor:
    found = iterate_inverse(net, net.transform(images))
    return found.value[:, : net.shape[0]].nan_to_num(nan=0.0, posinf=1.0, neginf=0.0)


@torch.no_grad()
def _curve(net: InvertibleClassifier, values: Tensor) -> list[float]:
    x = net.prepare(values)
    z = net.transform(x)
    errors = []
    for k in ITERATIONS:
        back = iterate_inverse(net, z, k).value[:, : net.shape[0]]
        distance = (back - x).flatten(1).norm(dim=1).nan_to_num(nan=torch.inf)
        errors.append(float(distance.median()))
    return errors


def _costs(
    name: str, net: InvertibleClassifier, splits: Mapping[str, Batch], settings: Settings
) -> dict[str, Any]:
    batch = Batch.of(splits["train"], slice(settings.batch_size))
    net.train()
    began = process_time()
    for _ in range(3):
        CrossEntropy()(net, batch, torch.Generator()).loss.backward()
    step = (process_time() - began) / 3
    net.zero_grad(set_to_none=True)
    net.eval()
    images = splits["test"].values[: settings.inverted]
    with torch.no_grad():
        began = process_time()
        z = net.transform(images)
        forward = process_time() - began
        began = process_time()
        certified = bool(net.certify())
        if certified:
            net.invert(z)
        inverse = process_time() - began
    return {
        "network": name,
        "training step in s, without the optimiser": step,
        f"{len(images)} images forward in s": forward,
        f"{len(images)} images back in s, certified": inverse if certified else None,
    }
