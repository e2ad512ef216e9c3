"""Bias estimation and reconstruction from one ReLU layer, on Iris and on images.

Draws figures 2 to 5 and table 1 of H. Eckert, D. Haider, M. Ehler, P. Balazs, "Invertibility of
ReLU-Layers: A Practical Approach", IJCCI 2024.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from experiments.relu.base import Report, Samples
from experiments.relu.frames_figures import (
    accuracy_figure,
    bounds_figure,
    image_figure,
    share_figure,
)
from experiments.relu.training import Training, train
from iresflow.relu.frames.active_rows import FrameBounds, frame_bounds
from iresflow.relu.frames.bias_estimation import (
    InjectivityPenalty,
    estimate_bias,
    share_of_biases,
    share_of_points,
)
from iresflow.relu.frames.reconstruction import Reconstruction, reconstruct
from iresflow.relu.networks.network import Layer
from iresflow.relu.networks.parsing import parse_network
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch
from iresflow.training.loop.batches import Samples as LabelledSamples
from iresflow.training.objectives.base import Objective, Score, Terms
from iresflow.training.objectives.classification import CrossEntropy, accuracy
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

PAPER_ERROR = {"iris": (0.84, 2.02), "mnist": (0.79, 1.63)}
"""Table 1 of the paper: mean reconstruction errors with and without the penalty."""

IRIS_TEST = 50
TINY = 1e-12
"""In place of the norm of an image without a bright pixel."""

WATCHED = 2000
"""Test points at most whose active rows are counted after each epoch."""


@dataclass(kw_only=True)
class Settings(Section):
    """Frames."""

    seed: int = 0
    """Seed of weights, order, noise and the flowers to test on."""
    redundancies: tuple[int, ...] = (2, 3, 9)
    """Rows over columns of the first layer (figure 2)."""
    enforced: int = 2
    """The redundancy at which the penalty is tried, one of them (figures 3 to 5, table 1)."""
    penalty: float = 1.0
    """Factor of the penalty in the objective."""
    sigma: float = 0.1
    """Standard deviation of the noise of randomised smoothing."""
    iris_dimensions: int = 3
    """Principal components of Iris that are kept, 4 for all."""
    iris_hidden: int = 27
    """Units of Iris' second layer; it has none at redundancy 9."""
    iris_runs: int = 10
    """Networks for each curve of Iris."""
    iris_epochs: int = 100
    """Passes over the flowers."""
    iris_batch_size: int = 16
    """Flowers in a step."""
    iris_learning_rate: float = 0.01
    """Of Adam."""
    iris_patience: int = 1000
    """Points for which alpha* has to stay the same."""
    iris_max_points: int = 50_000
    """Points at most that an estimate of alpha* draws."""
    image_scaling: Literal["deviation", "norm"] = "norm"
    """What is 1: the deviation of all pixels, or the norm of each image."""
    image_samples: int = 10_000
    """Training images."""
    image_epochs: int = 6
    """Passes over the images."""
    image_batch_size: int = 128
    """Images in a step."""
    image_learning_rate: float = 0.01
    """Of Adam."""
    image_patience: int = 20
    """Points for which alpha* has to stay the same."""
    image_max_points: int = 2048
    """Points at most that an estimate of alpha* draws."""
    points: int = 300
    """Test images whose active rows are decomposed and reconstructed from."""

    def __post_init__(self) -> None:
        if self.enforced not in self.redundancies:
            raise ValueError(
                f"enforced={self.enforced}; allowed is one of redundancies={self.redundancies}"
            )
        if not 1 <= self.iris_dimensions <= 4:
            raise ValueError(f"iris_dimensions={self.iris_dimensions}; allowed is 1 to 4")
        if self.image_scaling not in SCALINGS:
            allowed = ", ".join(SCALINGS)
            raise ValueError(f"image_scaling={self.image_scaling!r}; allowed are {allowed}")
        for name in ("iris_runs", "points", "image_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; allowed is 1 or more")


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """One network, and its course.

    Attributes:
        network: In eval mode; its first module is the layer in question.
        accuracy: On the test points, after each epoch, ``(E + 1,)``.
        points: Share of test points with n active rows, likewise.
        biases: Share of biases below alpha*, likewise.
        converged: Share of the epochs whose estimate of alpha* met its stopping rule.
    """

    network: nn.Sequential
    accuracy: np.ndarray
    points: np.ndarray
    biases: np.ndarray
    converged: float


def quick(settings: Settings) -> Settings:
    """Settings for a run within a minute."""
    return replace(
        settings,
        iris_runs=min(settings.iris_runs, 2),
        iris_epochs=min(settings.iris_epochs, 20),
        image_samples=min(settings.image_samples, 1500),
        image_epochs=min(settings.image_epochs, 2),
        image_max_points=min(settings.image_max_points, 256),
        points=min(settings.points, 16),
    )


def run(settings: Settings, data: Mapping[str, Samples], report: Report) -> None:
    """Runs the experiment. Errors: as those of training, bias estimation and data."""
    rows: list[dict[str, Any]] = []
    bounds: dict[str, tuple[FrameBounds, FrameBounds]] = {}
    curves: dict[str, dict[str, list[Trained]]] = {}
    images: tuple[Tensor, Reconstruction, Reconstruction] | None = None
    images_of, restored = SCALINGS[settings.image_scaling](data["images"])
    for samples, runs in ((iris_samples(settings), settings.iris_runs), (images_of, 1)):
        name = samples.name
        curves[name] = {}
        for redundancy in settings.redundancies:
            curves[name][f"m/n = {redundancy}"] = [
                _train(settings, samples, redundancy, 0.0, i) for i in range(runs)
            ]
        plain = curves[name][f"m/n = {settings.enforced}"]
        held = [
            _train(settings, samples, settings.enforced, settings.penalty, i) for i in range(runs)
        ]
        curves[name]["penalised"] = held
        points = samples.test.flatten(1).double()[: settings.points]
        pair = []
        for kind, networks in (("approx. invertible", held), ("unregularised", plain)):
            found = [_reconstruct(trained.network, points) for trained in networks]
            row = _table_row(name, kind, networks, found, points)
            paper = PAPER_ERROR.get(name, (None, None))
            row["paper"] = paper[0 if networks is held else 1]
            rows.append(row)
            pair.append(found)
        bounds[name] = (pair[0][0][1], pair[1][0][1])
        if name != "iris":
            images = points, pair[0][0][0], pair[1][0][0]
        report.figure(f"figure-2-{name}", share_figure(_shares(settings, curves[name]), name))
    report.table("table-1", rows, "Mean reconstruction error on test points, 2-norm.")
    _write_shares(settings, curves, report)
    report.figure("figure-3", accuracy_figure(_accuracies(settings, curves)))
    assert images is not None
    shape = data["images"].test.shape[1:]
    pictures = (restored(x) for x in (images[0], images[1].x, images[2].x))
    report.figure("figure-4", image_figure(*pictures, shape))
    report.figure("figure-5", bounds_figure(bounds))


Restore = Callable[[Tensor], Tensor]
"""From the first test points as they are trained on ``(B, n)`` back to pixels in [0, 1]."""


def standardised(samples: Samples) -> tuple[Samples, Restore]:
    """Images with mean 0 and deviation 1 over all training pixels."""
    mean, deviation = float(samples.train.mean()), float(samples.train.std())
    train, test = ((part - mean) / deviation for part in (samples.train, samples.test))
    return replace(samples, train=train, test=test), lambda x: deviation * x + mean


def on_the_sphere(samples: Samples) -> tuple[Samples, Restore]:
    """Images of norm 1 each."""
    train, test = samples.train.flatten(1), samples.test.flatten(1)
    norms = test.norm(dim=1, keepdim=True)
    train = train / train.norm(dim=1, keepdim=True).clamp(min=TINY)
    scaled = replace(samples, train=train, test=test / norms.clamp(min=TINY))
    return scaled, lambda x: x * norms[: len(x)]


SCALINGS: dict[str, Callable[[Samples], tuple[Samples, Restore]]] = {
    "deviation": standardised,
    "norm": on_the_sphere,
}


def iris_samples(settings: Settings) -> Samples:
    """Iris, standardised, on its first principal components; 50 of 150 flowers to test on."""
    from sklearn.datasets import load_iris  # slow to import, for one of the data sets

    bunch = load_iris()
    order = np.random.default_rng(settings.seed).permutation(len(bunch.data))
    values, labels = bunch.data[order], torch.from_numpy(bunch.target[order])
    train = values[IRIS_TEST:]
    values = (values - train.mean(0)) / train.std(0)
    _, _, axes = np.linalg.svd(values[IRIS_TEST:], full_matrices=False)
    points = torch.from_numpy(values @ axes[: settings.iris_dimensions].T).float()
    return Samples(
        "iris", points[IRIS_TEST:], labels[IRIS_TEST:], points[:IRIS_TEST], labels[:IRIS_TEST],
        tuple(bunch.target_names),
    )  # fmt: skip


def build(
    settings: Settings, name: str, size: int, redundancy: int, classes: int
) -> nn.Sequential:
    """The networks of the paper's appendix."""
    units = redundancy * size
    if name == "iris" and redundancy < 9:
        return nn.Sequential(
            nn.Linear(size, units), nn.ReLU(), nn.Linear(units, settings.iris_hidden), nn.ReLU(),
            nn.Linear(settings.iris_hidden, classes),
        )  # fmt: skip
    return nn.Sequential(nn.Linear(size, units), nn.ReLU(), nn.Linear(units, classes))


@final
@dataclass(frozen=True, eq=False)
class PenalisedEntropy(Objective):
    """Cross entropy, and a penalty of the first layer's biases (section 4.2 of the paper).

    Arguments:
        penalty: Of alpha, which is minus the bias.
        factor: Of the penalty.
    """

    penalty: InjectivityPenalty
    factor: float

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        terms = CrossEntropy()(model, batch, stream)
        if not self.factor:
            return terms
        assert isinstance(model, nn.Sequential) and isinstance(model[0].bias, Tensor)
        return replace(terms, loss=terms.loss + self.factor * self.penalty(-model[0].bias))

    def evaluate(self, model: nn.Module, split: LabelledSamples) -> Score:
        return CrossEntropy().evaluate(model, split)


def _train(
    settings: Settings, samples: Samples, redundancy: int, factor: float, index: int
) -> Trained:
    labels, test_labels = samples.labels()
    small = samples.name == "iris"
    count = len(samples.train) if small else settings.image_samples
    inputs, labels = samples.train.flatten(1)[:count], labels[:count]
    test = samples.test.flatten(1)
    training = Training(
        epochs=settings.iris_epochs if small else settings.image_epochs,
        batch_size=settings.iris_batch_size if small else settings.image_batch_size,
        learning_rate=settings.iris_learning_rate if small else settings.image_learning_rate,
        seed=settings.seed + index,
    )
    torch.manual_seed(settings.seed + index)
    size = inputs.shape[1]
    network = build(settings, samples.name, size, redundancy, len(samples.classes))
    layer = network[0]
    assert isinstance(layer, nn.Linear)
    penalty = InjectivityPenalty(layer.out_features)
    stream = torch.Generator().manual_seed(settings.seed + index)
    course: list[tuple[float, float, float]] = []
    converged: list[bool] = []

    def watch(module: nn.Module) -> None:
        first = _first_layer(module)
        estimate = estimate_bias(
            first,
            inputs,
            sigma=settings.sigma,
            patience=settings.iris_patience if small else settings.image_patience,
            max_samples=settings.iris_max_points if small else settings.image_max_points,
            generator=stream,
            progress=False,
        )
        penalty.update(estimate.alpha)
        converged.append(estimate.converged)
        course.append((
            accuracy(module, test, test_labels),
            share_of_points(first, test[:WATCHED]),
            share_of_biases(-first.affine.bias, estimate.alpha),
        ))  # fmt: skip

    title = f"{samples.name} m/n = {redundancy}{', penalised' if factor else ''}"
    objective = PenalisedEntropy(penalty, factor)
    train(network, inputs, labels, objective, training, title=title, after_epoch=watch)
    numbers = np.array(course).T
    return Trained(network, *numbers, float(np.mean(converged)))


def _reconstruct(network: nn.Sequential, points: Tensor) -> tuple[Reconstruction, FrameBounds]:
    layer = _first_layer(network)
    return reconstruct(layer, layer(points)), frame_bounds(layer, points)


def _first_layer(network: nn.Module) -> Layer:
    assert isinstance(network, nn.Sequential)
    return parse_network(network[:2]).layers[0]


def _table_row(
    name: str,
    kind: str,
    networks: list[Trained],
    found: list[tuple[Reconstruction, FrameBounds]],
    points: Tensor,
) -> dict[str, Any]:
    errors = torch.stack([(result.x - points).norm(dim=1) for result, _ in found])
    runs = errors.mean(1)
    spread = float(runs.std() / len(runs) ** 0.5) if len(runs) > 1 else float("nan")
    spread = spread if len(runs) > 1 else float(errors.std() / errors.numel() ** 0.5)
    determined = torch.stack([result.determined for result, _ in found]).double()
    return {
        "data": name,
        "layer": kind,
        "mean error": float(errors.mean()),
        "standard error": spread,
        "relative error": float((errors / points.norm(dim=1)).mean()),
        "reconstructed %": 100 * float(determined.mean()),
        "uncertain": int(sum(int(bound.uncertain.sum()) for _, bound in found)),
        "accuracy %": 100 * float(np.mean([trained.accuracy[-1] for trained in networks])),
        "A_0": min(bound.a0 for _, bound in found),
        "B_0": max(bound.b0 for _, bound in found),
        "median lower": float(torch.stack([bound.lower for _, bound in found]).median()),
        "median upper": float(torch.stack([bound.upper for _, bound in found]).median()),
    }


def _shares(
    settings: Settings, curves: Mapping[str, list[Trained]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        key: (
            np.mean([trained.points for trained in networks], axis=0),
            np.mean([trained.biases for trained in networks], axis=0),
        )
        for key, networks in curves.items()
    }


def _accuracies(
    settings: Settings, curves: Mapping[str, Mapping[str, list[Trained]]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (
            np.stack([t.accuracy for t in by_kind["penalised"]]),
            np.stack([t.accuracy for t in by_kind[f"m/n = {settings.enforced}"]]),
        )
        for name, by_kind in curves.items()
    }


def _write_shares(
    settings: Settings, curves: Mapping[str, Mapping[str, list[Trained]]], report: Report
) -> None:
    rows = [
        {
            "data": name,
            "layer": key,
            "points before training %": 100 * float(np.mean([t.points[0] for t in networks])),
            "points %": 100 * float(np.mean([t.points[-1] for t in networks])),
            "biases before training %": 100 * float(np.mean([t.biases[0] for t in networks])),
            "biases %": 100 * float(np.mean([t.biases[-1] for t in networks])),
            "accuracy %": 100 * float(np.mean([t.accuracy[-1] for t in networks])),
            "estimates that met s %": 100 * float(np.mean([t.converged for t in networks])),
        }
        for name, by_kind in curves.items()
        for key, networks in by_kind.items()
    ]
    report.table("figure-2", rows, "Test points with n active rows; biases below alpha*.")
