"""How learned operators are trained and judged in these experiments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.classifiers.training import train_once
from experiments.inverse_problems.learned_problems import Problem, Spectrum
from iresflow.inverse_problems import LearnedOperator
from iresflow.tensors import wide_norm
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.base import Objective

__all__ = ["best_errors", "errors", "inverse_of", "relative_error", "train_operator"]

GRID = torch.logspace(-6, 0, 61, dtype=torch.float64).tolist()
"""Parameters of the classical filters; the best one is taken for each noise."""


def train_operator(
    net: LearnedOperator,
    problem: Problem,
    where: Path,
    objective: Objective,
    seed: int,
    options: Mapping[str, Any],
) -> LearnedOperator:
    """Trains a new network in a directory, or takes it from there, and returns it."""
    train_once(
        net,
        Batch(problem.train),
        Batch(problem.held[:200]),
        where,
        objective=objective,
        seed=seed,
        decay_steps=0.5,
        validate_every=0.25,
        **options,
    )
    return net


def inverse_of(net: LearnedOperator) -> Callable[[Tensor], Tensor]:
    """The reconstruction by a network."""
    return lambda z: net.invert(z).value.detach()


def errors(
    problem: Problem, inverse: Callable[[Tensor], Tensor], noisy: Sequence[Tensor]
) -> list[float]:
    """Mean relative errors of reconstructions from each of several z."""
    return [relative_error(inverse(z), problem.test) for z in noisy]


def relative_error(found: Tensor, x: Tensor) -> float:
    """The mean of |found - x| / |x| over samples."""
    return float((wide_norm(found - x) / wide_norm(x).clamp_min(1e-6)).mean())


def best_errors(
    problem: Problem, spectrum: Spectrum, name: str, noisy: Sequence[Tensor]
) -> list[float]:
    """The errors of a filter with the parameter that suits each z best, which no one knows."""
    table = [errors(problem, spectrum.filter(name, a), noisy) for a in GRID]
    return [min(column) for column in zip(*table, strict=True)]
