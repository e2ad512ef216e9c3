"""The experiment `experiments.relu.frames`: its settings, and what it measures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.relu.base import Report, Samples
from experiments.relu.frames.data import SCALINGS, iris_samples
from experiments.relu.frames.figures import (
    accuracy_figure,
    bounds_figure,
    image_figure,
    share_figure,
)
from experiments.relu.frames.networks import Trained, first_layer, train_network
from experiments.relu.frames.settings import Settings, quick
from iresflow.relu.frames.active_rows import FrameBounds, frame_bounds
from iresflow.relu.frames.reconstruction import Reconstruction, reconstruct

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

PAPER_ERROR = {"iris": (0.84, 2.02), "mnist": (0.79, 1.63)}
"""Table 1 of the paper: mean reconstruction errors with and without the penalty."""


def run(settings: Settings, data: Mapping[str, Samples], report: Report) -> None:
    """Runs the experiment. Errors: as those of training, bias estimation and data."""
    rows: list[dict[str, Any]] = []
    bounds: dict[str, tuple[FrameBounds, FrameBounds]] = {}
    curves: dict[str, dict[str, list[Trained]]] = {}
    images: tuple[Tensor, Reconstruction, Reconstruction] | None = None
    images_of, restored = SCALINGS[settings.image_scaling](data["images"])
    for samples, runs in (
        (iris_samples(settings.seed, settings.iris_dimensions), settings.iris_runs),
        (images_of, 1),
    ):
        name = samples.name
        curves[name] = {}
        for redundancy in settings.redundancies:
            curves[name][f"m/n = {redundancy}"] = [
                train_network(settings, samples, redundancy, 0.0, i) for i in range(runs)
            ]
        plain = curves[name][f"m/n = {settings.enforced}"]
        held = [
            train_network(settings, samples, settings.enforced, settings.penalty, i)
            for i in range(runs)
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


def _reconstruct(network: nn.Sequential, points: Tensor) -> tuple[Reconstruction, FrameBounds]:
    layer = first_layer(network)
    return reconstruct(layer, layer(points)), frame_bounds(layer, points)


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
        "A_0": min(float(bound.lower.min()) for _, bound in found),
        "B_0": max(float(bound.upper.max()) for _, bound in found),
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
