"""Learned operators: how the error of a reconstruction depends on noise and on the Lipschitz limit
(Arndt et al., 2023, arXiv 2306.01335), beside truncated singular values and Tikhonov."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.classifiers.training import train_once
from experiments.inverse_problems.learned_figures import draw_curves, draw_images
from experiments.inverse_problems.learned_problems import (
    FILTERS,
    Problem,
    Spectrum,
    blurred_images,
    measured,
    smoothed_signals,
)
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.inverse_problems import (
    Approximation,
    DivergencePenalty,
    LearnedOperator,
    LogDetPenalty,
    Reconstruction,
)
from iresflow.tensors import wide_norm
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.base import Objective
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

GRID = torch.logspace(-6, 0, 61, dtype=torch.float64).tolist()
"""Parameters of the classical filters; the best one is taken for each noise."""

SHOWN, SHOWN_NOISE = 8, 0.01
"""Images in the figure, and their relative noise."""


@dataclass(kw_only=True)
class Settings(Section):
    """Learned operators."""

    seed: int = 0
    """Seed of signals, noise, weights and order."""
    limits: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    """Lipschitz limits L of the one block."""
    size: int = 64
    """Entries of a signal."""
    hidden: int = 64
    """Units in the branch of signals, of two layers."""
    signals: int = 4000
    """Signals to train on."""
    steps: int = 800
    """Of training on signals, 128 in a step."""
    pool: int = 2
    """Pixels on the side of the squares that images are averaged over before."""
    image_limits: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    """Limits for images."""
    image_hidden: int = 8
    """Channels in the branch of images, of two 5 x 5 convolutions."""
    image_steps: int = 500
    """Of training on images, 32 in a step."""
    test: int = 50
    """Samples that are reconstructed."""
    compared_noise: float = 0.1
    """Relative noise for which the objectives are compared."""
    compared_limit: float = 0.95
    """Limit for which they are."""
    compared_steps: int = 500
    """Of their training."""


def quick(settings: Settings) -> Settings:
    return replace(
        settings,
        limits=(0.5, 0.9, 0.98),
        size=16,
        hidden=16,
        signals=500,
        steps=100,
        image_limits=(0.5, 0.9),
        image_hidden=4,
        image_steps=20,
        test=8,
        compared_steps=20,
    )


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Runs both problems, then compares objectives on the first."""
    signals = smoothed_signals(
        settings.size, settings.signals, settings.test, settings.hidden, settings.seed
    )
    images = data["images"]
    blur = blurred_images(
        _floats(images.train.values, images.levels, settings.pool),
        _floats(images.validation.values, images.levels, settings.pool),
        _floats(images.test.values[: settings.test], images.levels, settings.pool),
        settings.image_hidden,
    )
    options = {"batch_size": 128, "learning_rate": 1e-2, "steps": settings.steps}
    _converge(signals, settings.limits, options, settings.seed, report)
    options = {"batch_size": 32, "learning_rate": 1e-2, "steps": settings.image_steps}
    nets = _converge(blur, settings.image_limits, options, settings.seed, report)
    z = measured(blur, SHOWN_NOISE, settings.seed)
    shown = {f"L = {limit:g}": _inverse_of(net)(z[:SHOWN]) for limit, net in nets.items()}
    rows = {"image": blur.test[:SHOWN], "blurred": z[:SHOWN], **shown}
    report.figure("images", draw_images(rows), f"Reconstructions, noise {SHOWN_NOISE:g}")
    _compare(signals, settings, report)


def _floats(images: Tensor, levels: int | None, pool: int) -> Tensor:
    if levels is None:
        raise ValueError("the blur is of images, and this data set has none")
    return F.avg_pool2d(images.float() / (levels - 1), pool)


def _train(
    net: LearnedOperator,
    problem: Problem,
    where: Path,
    objective: Objective,
    seed: int,
    options: Mapping[str, Any],
) -> LearnedOperator:
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


def _converge(
    problem: Problem,
    limits: tuple[float, ...],
    options: Mapping[str, Any],
    seed: int,
    report: Report,
) -> dict[float, LearnedOperator]:
    """Trains a network for each limit, and measures errors at noises that belong to the limits.

    With the relative noise :math:`\\delta = (1 - L)^2` of each limit, L goes to 1 and
    :math:`\\delta / (1 - L)` to 0.

    Returns:
        The networks of the last kind.
    """
    noises = [(1 - limit) ** 2 for limit in limits]
    noisy = [measured(problem, noise, seed) for noise in noises]
    rows, curves = [], {}
    for kind, build in problem.networks.items():
        nets = {}
        for limit in limits:
            torch.manual_seed(seed)
            where = report.path / f"{problem.name}-{kind}-{limit:g}"
            objective = Approximation(problem.operator)
            nets[limit] = _train(build(limit), problem, where, objective, seed, options)
        curves[kind] = [_errors(problem, _inverse_of(net), noisy) for net in nets.values()]
        for index, (limit, net) in enumerate(nets.items()):
            row = {"kind": kind, "L": limit, "noise": noises[index]}
            row |= _described(problem, net, noisy[index])
            rows.append({**row, "error": curves[kind][index][index]})
    spectrum = Spectrum.of(problem)
    curves["filter"] = [
        _errors(problem, spectrum.filter("squared soft TSVD", 1 - limit), noisy)
        for limit in limits
    ]
    classical = {name: _best(problem, spectrum, name, noisy) for name in FILTERS}
    report.table(f"{problem.name}-limits", rows, CAPTION)
    report.table(f"{problem.name}-errors", _long(limits, noises, curves, classical))
    figure = draw_curves(limits, noises, curves, classical)
    report.figure(problem.name, figure, f"Learned operators: {problem.name}")
    return nets


CAPTION = (
    "Of each limit L: the certified bound of the inverse's Lipschitz constant and the largest "
    "ratio of |F^-1(z) - F^-1(z')| to |z - z'| over noise; the mean of |F(x) - K x| / (1 - L) and "
    "of the noise's length in z over 1 - L, relative to |x|; and the mean relative error of "
    "reconstructions, all with relative noise (1 - L)^2."
)


def _inverse_of(net: LearnedOperator) -> Callable[[Tensor], Tensor]:
    return lambda z: net.invert(z).value.detach()


@torch.no_grad()
def _described(problem: Problem, net: LearnedOperator, z: Tensor) -> dict[str, float]:
    exact, x = problem.operator(problem.test), problem.test
    moved = wide_norm(net.invert(z).value - net.invert(exact).value) / wide_norm(z - exact)
    scale = (1 - net.lipschitz) * float(wide_norm(x).mean())
    return {
        "stability, certified": net.stability(),
        "largest amplification": float(moved.max()),
        "noise in z / (1 - L)": float(wide_norm(z - exact).mean()) / scale,
        "|F(x) - K x| / (1 - L)": float(wide_norm(net(x) - exact).mean()) / scale,
    }


def _errors(
    problem: Problem, inverse: Callable[[Tensor], Tensor], noisy: Sequence[Tensor]
) -> list[float]:
    """Mean relative errors of reconstructions from each of several z."""
    return [_relative(inverse(z), problem.test) for z in noisy]


def _relative(found: Tensor, x: Tensor) -> float:
    return float((wide_norm(found - x) / wide_norm(x).clamp_min(1e-6)).mean())


def _best(problem: Problem, spectrum: Spectrum, name: str, noisy: Sequence[Tensor]) -> list[float]:
    """The errors of a filter with the parameter that suits each z best, which no one knows."""
    table = [_errors(problem, spectrum.filter(name, a), noisy) for a in GRID]
    return [min(column) for column in zip(*table, strict=True)]


def _long(
    limits: tuple[float, ...],
    noises: list[float],
    curves: Mapping[str, list[list[float]]],
    classical: Mapping[str, list[float]],
) -> list[dict[str, Any]]:
    """Errors by method, one column a noise."""
    columns = [f"noise {noise:g}" for noise in noises]
    rows = [
        {"method": f"{kind}, L = {limit:g}", **dict(zip(columns, errors, strict=True))}
        for kind, table in curves.items()
        for limit, errors in zip(limits, table, strict=True)
    ]
    return rows + [
        {"method": f"{name}, best", **dict(zip(columns, errors, strict=True))}
        for name, errors in classical.items()
    ]


def _compare(problem: Problem, settings: Settings, report: Report) -> None:
    """Objectives at one noise and one limit, and linear maps beside them."""
    seed, noise, limit = settings.seed, settings.compared_noise, settings.compared_limit
    operator, x = problem.operator, problem.train
    deviation = noise * float(operator.forward(x).square().mean().sqrt())
    in_z = deviation / operator.norm
    objectives: dict[str, Objective] = {
        "approximation": Approximation(operator),
        "approximation, divergence": Approximation(operator, (DivergencePenalty(in_z),)),
        "approximation, log-det": Approximation(operator, (LogDetPenalty(in_z),)),
        "reconstruction": Reconstruction(operator, deviation, tol=1e-4),
    }
    options = {"batch_size": 64, "learning_rate": 1e-2, "steps": settings.compared_steps}
    z = measured(problem, noise, seed)
    rows = []
    for name, objective in objectives.items():
        torch.manual_seed(seed)
        net = problem.networks["network"](limit)
        where = report.path / f"objective-{name.replace(', ', '-')}"
        _train(net, problem, where, objective, seed, options)
        error = _relative(_inverse_of(net)(z), problem.test)
        of_map = _relative(net(problem.test).detach(), operator(problem.test))
        rows.append({"method": name, "error": error, "error of F": of_map})
    spectrum = Spectrum.of(problem)
    for name in FILTERS:
        (error,) = _best(problem, spectrum, name, [z])
        rows.append({"method": f"{name}, best", "error": error, "error of F": None})
    report.table(
        "objectives",
        rows,
        f"Objectives, L = {limit:g}, relative noise {noise:g}: mean relative error of "
        "reconstructions, and of F(x) as an approximation of K x.",
    )
