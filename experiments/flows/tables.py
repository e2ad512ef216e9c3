"""Densities of small tables and in the plane, beside splines and masked autoregressive flows.

The tables are those of scikit-learn, in five folds; each column is in units of its deviation over
the whole table, and columns of a few values, whose density would be infinite, are left out. A part
of each training fold chooses the time to stop at, and that of the first fold the learning rate and
the weight decay. All flows have the same protocol and at most the same seconds of processor time.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, final

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import KFold
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.peers import Density, zuko_flow
from experiments.flows.likelihood import losses_of, train_density
from experiments.flows.models import preset_flow
from experiments.flows.records import Records
from iresflow import Flow
from iresflow.bijections import Bijection, Composition, Decorrelate, Standardize
from iresflow.commands.report import Report
from iresflow.data import Dataset, Split, load_dataset
from iresflow.errors import NonFiniteError
from iresflow.models import StudentT
from iresflow.training import presets
from iresflow.training.config import Config, OptimizerName
from iresflow.training.sections import Section, section_of
from iresflow.training.values import read_yaml

__all__ = [
    "DATA",
    "FLOWS",
    "Settings",
    "column_units",
    "folds_of",
    "normal_losses",
    "quick",
    "run",
]

DATA: dict[str, dict[str, Any]] = {}

TABLES: Mapping[str, Callable[..., Any]] = {
    "wine": datasets.load_wine,
    "breast-cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
}

FEWEST = 10
"""Values that a column has to take."""

OURS = "i-ResNet"


def decorrelated(dim: int) -> Bijection:
    """What comes before the blocks of ours, for others."""
    return Composition([Standardize(dim), Decorrelate(dim)])


FLOWS: Mapping[str, Callable[[Config, Dataset], Flow | Density]] = {
    OURS: preset_flow,
    "NSF": lambda config, data: zuko_flow(data.shape, None, "NSF"),
    "NSF, decorrelated": lambda config, data: zuko_flow(
        data.shape, None, "NSF", data_map=decorrelated(data.shape[0])
    ),
    "NSF, as ours": lambda config, data: zuko_flow(
        data.shape,
        None,
        "NSF",
        data_map=decorrelated(data.shape[0]),
        base=StudentT(data.shape[0]),
    ),
    "MAF": lambda config, data: zuko_flow(data.shape, None, "MAF", transforms=5, randperm=True),
}
"""Ours by the preset, and zuko's by its defaults but for what stands here: *as ours* has the map
and the base density of our preset of tables."""


@dataclass(kw_only=True)
class Settings(Section):
    """Tables."""

    flows: tuple[str, ...] = tuple(FLOWS)
    """Rows of the table, the first being what others are compared with."""
    seed: int = 0
    """Seed of folds, data, weights and batches."""
    tables: tuple[str, ...] = tuple(TABLES)
    """Tables of scikit-learn."""
    densities: tuple[str, ...] = ("two-moons", "eight-gaussians", "checkerboard")
    """Names of densities in the plane."""
    table_preset: str = "table"
    """The configuration that gives our model of tables, and the batch of all."""
    plane_preset: str = "toy2d"
    """The same in the plane."""
    folds: int = 5
    """Of each table."""
    validation: float = 0.15
    """Share of a training fold that chooses rate and time."""
    table_seconds: float = 8.0
    """Of processor time, for each training on a fold; most stop earlier."""
    plane_seconds: float = 20.0
    """The same in the plane."""
    rates: tuple[float, ...] = (1e-3, 1e-2)
    """Learning rates that are tried."""
    optimizers: tuple[OptimizerName, ...] = ("adam",)
    """Optimisers that are tried, for all densities."""
    weight_decays: tuple[float, ...] = (0.0, 1e-2)
    """Weight decays that are tried on tables; in the plane there are points enough for none."""
    patience: int = 12
    """Validations without a better score after which a training ends; there are 50 at most."""

    def __post_init__(self) -> None:
        known: Mapping[str, Iterable[str]] = {"table": TABLES, "flow": FLOWS}
        for kind, names in (("table", self.tables), ("flow", self.flows)):
            for name in names:
                if name not in known[kind]:
                    raise ValueError(
                        f"unknown {kind} {name!r}; choose from {', '.join(known[kind])}"
                    )
        if not self.flows:
            raise ValueError("flows is empty: name at least one")


def quick(settings: Settings) -> Settings:
    """Within a minute."""
    return replace(
        settings,
        tables=settings.tables[:1],
        densities=settings.densities[:1],
        folds=2,
        table_seconds=0.5,
        plane_seconds=0.5,
        rates=settings.rates[-1:],
        weight_decays=settings.weight_decays[-1:],
    )


@final
@dataclass(frozen=True)
class Trial:
    """One way to train."""

    rate: float
    weight_decay: float
    optimizer: OptimizerName


@final
@dataclass(frozen=True)
class Problem:
    """What densities are compared on: each fold has parts to train, validate and test on."""

    name: str
    folds: tuple[Dataset, ...]
    config: Config
    seconds: float
    trials: tuple[Trial, ...]


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Runs the experiment. Errors: as those of training and data."""
    records = Records(report.path / "records.jsonl")
    rows: list[dict[str, Any]] = []
    for problem in _problems(settings):
        losses = {name: _losses(name, problem, settings, records) for name in settings.flows}
        losses["one normal density"] = torch.cat([normal_losses(f) for f in problem.folds])
        first = settings.flows[0]
        rows += [_row(problem, name, losses, first) for name in losses]
        report.table(
            "tables",
            rows,
            "Nats of a test sample, their standard error over samples, and the paired "
            f"difference from {first}.",
        )


def column_units(values: np.ndarray) -> Tensor:
    """A table ``(N, D)`` in units of its columns' deviations, as float32.

    Columns that take fewer than `FEWEST` values are left out.
    """
    kept = values[:, [len(np.unique(column)) >= FEWEST for column in values.T]]
    scaled = (kept - kept.mean(0)) / kept.std(0)
    return torch.from_numpy(scaled.astype(np.float32))


def folds_of(
    name: str, values: Tensor, folds: int, validation: float, seed: int
) -> Iterator[Dataset]:
    """The folds of samples ``(N, D)``, each with all others to train and validate on."""
    for train, test in KFold(folds, shuffle=True, random_state=seed).split(values):
        shuffled = np.random.default_rng(seed).permutation(train)
        count = round(validation * len(train))
        parts = (shuffled[count:], shuffled[:count], test)
        yield Dataset(name, *(Split(values[part]) for part in parts), levels=None, classes=())


def _problems(settings: Settings) -> Iterator[Problem]:
    trials = tuple(
        Trial(*options)
        for options in product(settings.rates, settings.weight_decays, settings.optimizers)
    )
    config = section_of(Config, read_yaml(presets.find(settings.table_preset)))
    for name in settings.tables:
        values = column_units(TABLES[name](return_X_y=True)[0])
        folds = folds_of(name, values, settings.folds, settings.validation, settings.seed)
        yield Problem(name, tuple(folds), config, settings.table_seconds, trials)
    trials = tuple(
        Trial(rate, 0.0, name) for rate, name in product(settings.rates, settings.optimizers)
    )
    config = section_of(Config, read_yaml(presets.find(settings.plane_preset)))
    for name in settings.densities:
        points = load_dataset(name, seed=settings.seed)
        yield Problem(name, (points,), config, settings.plane_seconds, trials)


def _losses(name: str, problem: Problem, settings: Settings, records: Records) -> Tensor:
    """Nats of all test samples, trained as is best on the first fold's validation part."""

    def result(number: int, trial: Trial) -> dict[str, Any]:
        options = f"{trial.rate:g} {trial.weight_decay:g} {trial.optimizer}"
        key = f"{problem.name} {number} {name} {options}"
        found = records.result(key, partial(_trained, name, problem, number, trial, settings))
        print(key, {k: v for k, v in found.items() if k != "losses"}, flush=True)
        return found

    first = {trial: result(0, trial) for trial in problem.trials}
    best = min(first, key=lambda trial: first[trial]["validation"])
    losses = [first[best]["losses"]]
    losses += [result(number, best)["losses"] for number in range(1, len(problem.folds))]
    return torch.tensor([loss for fold in losses for loss in fold], dtype=torch.float64)


def _trained(
    name: str, problem: Problem, number: int, trial: Trial, settings: Settings
) -> dict[str, Any]:
    """The validation score of a training on one fold, and the losses of its test samples.

    Those of a training that failed are infinite.
    """
    data = problem.folds[number]
    torch.manual_seed(settings.seed)
    model = FLOWS[name](problem.config, data)
    try:
        fitted = train_density(
            model,
            data,
            None,
            minutes=problem.seconds / 60,
            batch_size=problem.config.training.batch_size,
            learning_rate=trial.rate,
            optimizer=trial.optimizer,
            weight_decay=trial.weight_decay,
            seed=settings.seed,
            validate_every=0.02,
            validation_samples=5000,
            patience=settings.patience,
        )
    except NonFiniteError as error:
        print(f"{problem.name}, {name}: {error}", flush=True)
        return {"validation": math.inf, "losses": [math.inf] * len(data.test)}
    losses = losses_of(model, data, data.test).tolist()
    return {"validation": fitted.best, "steps": fitted.steps, "losses": losses}


def normal_losses(data: Dataset) -> Tensor:
    """Nats of the test samples under the normal density of the training part's moments."""
    x = data.train.values.double()
    density = MultivariateNormal(x.mean(0), x.T.cov())
    return -density.log_prob(data.test.values.double())


def _row(problem: Problem, name: str, found: Mapping[str, Tensor], first: str) -> dict[str, Any]:
    losses, difference = found[name], found[name] - found[first]
    return {
        "data": problem.name,
        "samples": len(losses),
        "dimensions": problem.folds[0].shape[0],
        "model": name,
        "nats": float(losses.mean()),
        "standard error": float(losses.std() / len(losses) ** 0.5),
        "median": float(losses.median()),
        f"- {first}": float(difference.mean()),
        "paired standard error": float(difference.std() / len(losses) ** 0.5),
    }
