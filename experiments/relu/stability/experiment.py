"""The experiment `experiments.relu.stability`: its settings, and what it measures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.relu.base import Report, Samples
from experiments.relu.networks import CIFAR_CHANNELS, cifar_network, mlp
from experiments.relu.stability.spectra import (
    Stages,
    decay_figure,
    effect_figure,
    measure_spectra,
    rows_of,
    stages_figure,
)
from experiments.relu.training import Training, train
from experiments.runner import capped
from iresflow.relu.networks.linearize import linearize
from iresflow.relu.ranks import singular_values
from iresflow.relu.stability.removed_rows import correlation_bound, correlation_counts
from iresflow.relu.stability.stage_spectra import image_window
from iresflow.training.objectives.classification import CrossEntropy, accuracy
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {
    "images": {"name": "cifar10"},
    "digits": {"name": "mnist"},
}

CONVOLUTIONS = 6
"""Layers of the convolutional networks that are looked at; the papers leave the dense ones out."""

COUNTED_LAYER = 4
"""Layer of the counting experiment (appendix A5)."""

GRID = torch.logspace(-2, 2, 121, dtype=torch.float64)
"""Constants c of that experiment."""


@dataclass(kw_only=True)
class Settings(Section):
    """Stability."""

    seed: int = 0
    """Seed of weights, order and choices."""
    samples: int = 50
    """Test samples over which medians are taken (thesis, figure 3.4)."""
    window: int | None = 12
    """Side of the square of the image that is moved, in the middle; null for the whole image."""
    whole_samples: int = 7
    """Test samples that are looked at with the whole image moved; 0 for none."""
    epochs: int = 3
    """Passes over the data of the convolutional networks; the paper has 100."""
    batch_size: int = 32
    """Samples in a step of that training (appendix A4)."""
    learning_rate: float = 3e-4
    """Of RMSprop; Keras' example has 1e-4 for its 100 passes."""
    train_images: int | None = 20_000
    """Images to train the convolutional networks on; null for all."""
    hidden: tuple[int, ...] = (3500, 784)
    """Hidden layers of the MLP (table 2)."""
    mlp_epochs: int = 3
    """Passes over the data of its training; the paper has 25."""
    mlp_batch_size: int = 200
    """Samples in a step of it; the paper has 1000."""
    train_samples: int | None = None
    """Samples to train the MLP on; null for all."""


def quick(settings: Settings) -> Settings:
    """Within a minute."""
    small = {"samples": 3, "window": 6, "whole_samples": 0, "epochs": 1, "train_images": 1000}
    return capped(settings, **small, hidden=600, mlp_epochs=2, train_samples=1000)


def run(settings: Settings, data: Mapping[str, Samples], report: Report) -> None:
    """Runs the experiments, one after the other."""
    images = data["images"]
    if len(images.test.shape) != 4:
        raise ValueError(f"{images.name} holds vectors; convolutions need images")
    if len(settings.hidden) < 2:
        raise ValueError(f"hidden={settings.hidden}; allowed are two layers or more")
    rows: list[dict[str, object]] = []
    _mlp(settings, data["digits"], report, rows)
    networks = {}
    for name, channels in CIFAR_CHANNELS.items():
        torch.manual_seed(settings.seed)
        module = cifar_network(channels, tuple(images.test.shape[1:]), len(images.classes))
        training = Training(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            optimizer="rmsprop",
            learning_rate=settings.learning_rate,
            seed=settings.seed,
        )
        rows.append(_train(module, name, images, training, settings.train_images))
        networks[name] = module
    report.table("networks", rows, "The trained networks.")
    columns, what = None, "the whole image"
    if settings.window is not None:
        columns = image_window(tuple(images.test.shape[1:]), settings.window)
        what = f"the {settings.window} x {settings.window} pixels in the middle"
    samples = images.test[: settings.samples]
    _counting(networks["WideCIFAR"], samples[0], columns, report)
    _convolutional(networks, samples, columns, what, "", report)
    if settings.whole_samples and columns is not None:
        whole = images.test[: settings.whole_samples]
        _convolutional(networks, whole, None, "the whole image", "-whole", report)


def _convolutional(
    networks: Mapping[str, nn.Sequential],
    samples: Tensor,
    columns: Tensor | None,
    what: str,
    suffix: str,
    report: Report,
) -> None:
    spectra = {
        name: measure_spectra(network, samples, columns, CONVOLUTIONS, f"{name}, {what}")
        for name, network in networks.items()
    }
    note = f"{_medians(len(samples))}; {what} moved"
    _report(report, f"convolutional{suffix}", spectra, (2, 5), note)
    figure = stages_figure(spectra, note)
    report.figure(f"convolutional-stages{suffix}", figure, "Condition and invariance (figure 4)")


def _mlp(
    settings: Settings, digits: Samples, report: Report, rows: list[dict[str, object]]
) -> None:
    torch.manual_seed(settings.seed)
    size = math.prod(digits.test.shape[1:])
    module = mlp((size, *settings.hidden, len(digits.classes)))
    training = Training(
        epochs=settings.mlp_epochs, batch_size=settings.mlp_batch_size, seed=settings.seed
    )
    rows.append(_train(module, "MLP", digits, training, settings.train_samples))
    samples, layers = digits.test[: settings.samples], len(settings.hidden)
    found = measure_spectra(module, samples, None, layers, "MLP")
    _report(report, "mlp", {"MLP": found}, (1, 2), _medians(len(samples)))


def _report(
    report: Report,
    name: str,
    spectra: Mapping[str, Stages],
    layers: tuple[int, ...],
    note: str,
) -> None:
    rows = [row for title, found in spectra.items() for row in rows_of(title, found)]
    report.table(f"{name}-stages", rows, note.capitalize() + ".")
    report.figure(f"{name}-decay", decay_figure(spectra, note), "Decay over the layers")
    report.figure(f"{name}-relu", effect_figure(spectra, layers, note), "Effect of ReLU")


def _counting(module: nn.Sequential, x: Tensor, columns: Tensor | None, report: Report) -> None:
    """The counting experiment of appendix A5, at one sample."""
    local = linearize(module[: 2 * COUNTED_LAYER - 1], x[None])
    (matrix,) = local.each_stage(lambda _, matrix: matrix, columns)[-1:]
    removed = (local.value <= 0).flatten()
    # Units that don't see what is moved are no rows of the matrix.
    seen = matrix.any(1)
    matrix, removed = matrix[seen], removed[seen]
    counts = correlation_counts(matrix, removed, GRID)
    bound = correlation_bound(matrix, removed)
    after = singular_values(matrix[~removed])
    left = int((~removed).sum())
    report.numbers(
        "counting",
        {
            "rows left after ReLU (M)": left,
            "rows removed": int(removed.sum()),
            "c at which all of them fulfil condition 3.5 for one removed row": min(
                GRID[counts == left].tolist(), default=float("inf")
            ),
            "bound of the smallest non-zero singular value (lemma 3.6)": bound.c,
            "the same without its last estimate": bound.direct,
            "smallest non-zero singular value after ReLU": after.smallest,
            "largest singular value after ReLU": after.largest,
        },
        f"Lemma 3.6 in layer {COUNTED_LAYER} of WideCIFAR, at one sample.",
    )
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(left, color="tab:red", linewidth=3, alpha=0.5, label=f"all rows left: {left}")
    axes.semilogx(GRID, counts, label="rows that fulfil condition 3.5")
    axes.axvline(after.largest, color="0.5", ls="--", label="largest singular value")
    axes.set_xlabel("constant c")
    axes.set_ylabel("rows")
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
    axes.set_title(f"Layer {COUNTED_LAYER} of WideCIFAR, one sample", fontsize=11)
    report.figure("counting", figure, "Rows that fulfil condition 3.5 (figure 8)")


def _train(
    module: nn.Sequential, name: str, data: Samples, training: Training, count: int | None
) -> dict[str, object]:
    train_labels, test_labels = data.labels()
    count = count or len(data.train)
    x, labels = data.train[:count], train_labels[:count]
    losses = train(module, x, labels, CrossEntropy(), training, title=f"training {name}")
    return {
        "network": name,
        "data": data.name,
        "images": len(x),
        "epochs": training.epochs,
        "training loss": losses[-1] if losses else None,
        "test accuracy": accuracy(module, data.test, test_labels),
    }


def _medians(count: int) -> str:
    return f"medians over {count} test samples" if count > 1 else "one test sample"
