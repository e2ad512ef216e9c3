"""Anomalies in two tables of scikit-learn: the scores of flows beside two detectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from iresflow import VectorFlow, fit
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.ood import (
    DensityOfStates,
    LatentFit,
    LikelihoodRatio,
    LocalDimension,
    LogProb,
    Panel,
    ScoreNorm,
    Typicality,
    evaluate,
)
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, Any]] = {}

TABLES = {
    # Tumours: benign ones are inside, malignant ones outliers; 30 columns.
    "breast cancer": (load_breast_cancer, (1,)),
    # Wines of three growers: the first two are inside; 13 columns.
    "wine": (load_wine, (0, 1)),
}
"""Each table, and its classes that are inside."""

HELD = 0.4
"""Share of the samples inside that is tested on."""


@dataclass(kw_only=True)
class Settings(Section):
    """Tables."""

    seed: int = 0
    """Of the first repetition."""
    seeds: int = 5
    """Repetitions, each with other samples held out."""
    blocks: int = 4
    """Of a flow."""
    hidden: int = 32
    """Width of its branches."""
    steps: int = 600
    """Of its training."""
    background_steps: int = 200
    """Of the training of LikelihoodRatio's background."""


def quick(settings: Settings) -> Settings:
    return replace(settings, seeds=2, blocks=1, hidden=8, steps=10, background_steps=3)


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Fits all detectors to each table, several times."""
    found: list[dict[str, Any]] = []
    for name in TABLES:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            train, inside, outside = _split(name, seed)
            scores = {
                **_of_detectors(train, inside, outside, seed),
                **_of_flow(train, inside, outside, settings, seed),
            }
            for method, pair in scores.items():
                told = evaluate(*pair)
                row = {"table": name, "seed": seed, "method": method, "AUROC": told.auroc}
                found.append({**row, "AUPR": told.aupr, "FPR95": told.fpr95})
            print(
                f"{name}, {seed}: "
                + ", ".join(f"{r['method']} {r['AUROC']:.3f}" for r in found[-len(scores) :]),
                flush=True,
            )
            report.table("repetitions", found)
    report.table("tables", _summary(found), _CAPTION)


_CAPTION = "Means over the repetitions, and the standard deviation of one."


def _split(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples to learn from, others like them, and outliers; in units of the first."""
    load, inside = TABLES[name]
    bunch = load()
    usual = np.isin(bunch.target, inside)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(usual))
    held = int(HELD * len(order))
    scaler = StandardScaler().fit(bunch.data[order[held:]])
    parts = order[held:], order[:held], np.flatnonzero(~usual)
    train, test, outliers = (scaler.transform(bunch.data[part]) for part in parts)
    return train, test, outliers


Pair = tuple[np.ndarray | Tensor, np.ndarray | Tensor]


def _of_detectors(
    train: np.ndarray, inside: np.ndarray, outside: np.ndarray, seed: int
) -> dict[str, Pair]:
    detectors = {
        "IsolationForest": IsolationForest(random_state=seed),
        "LocalOutlierFactor": LocalOutlierFactor(novelty=True),
    }
    found: dict[str, Pair] = {}
    for name, detector in detectors.items():
        detector.fit(train)
        found[name] = (-detector.score_samples(inside), -detector.score_samples(outside))
    return found


def _of_flow(
    train: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    settings: Settings,
    seed: int,
) -> dict[str, Pair]:
    torch.manual_seed(seed)
    x = torch.from_numpy(train).float()
    flow = VectorFlow(x.shape[1], settings.blocks, settings.hidden)
    fit(flow, x, validation=0.2, steps=settings.steps, seed=seed, bar=False)
    scores = {
        "LogProb": LogProb(),
        "Typicality": Typicality(),
        "ScoreNorm": ScoreNorm(),
        "LatentFit": LatentFit(),
        "LocalDimension": LocalDimension(),
        "DensityOfStates": DensityOfStates(),
        "LikelihoodRatio": LikelihoodRatio(steps=settings.background_steps),
    }
    panel = Panel(flow, list(scores.values()), x)
    pairs = zip(panel.scores(inside), panel.scores(outside), strict=True)
    return {name: (a.values, b.values) for name, (a, b) in zip(scores, pairs, strict=True)}


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = dict.fromkeys((row["table"], row["method"]) for row in rows)
    summary = []
    for table, method in groups:
        own = [row for row in rows if (row["table"], row["method"]) == (table, method)]
        aurocs = [row["AUROC"] for row in own]
        summary.append(
            {
                "table": table,
                "method": method,
                "AUROC": mean(aurocs),
                "+-": stdev(aurocs) if len(aurocs) > 1 else None,
                "AUPR": mean(row["AUPR"] for row in own),
                "FPR95": mean(row["FPR95"] for row in own),
            }
        )
    return summary
