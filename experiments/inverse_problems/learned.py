"""Learned operators: how the error of a reconstruction depends on noise and on the Lipschitz limit
(Arndt et al., 2023, arXiv 2306.01335), beside truncated singular values and Tikhonov."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.inverse_problems.learned_figures import draw_curves, draw_images
from experiments.inverse_problems.learned_objectives import compare_objectives
from experiments.inverse_problems.learned_problems import (
    FILTERS,
    Problem,
    Spectrum,
    blurred_images,
    deviation_of,
    measured,
    smoothed_signals,
)
from experiments.inverse_problems.learned_training import (
    best_errors,
    errors,
    inverse_of,
    train_operator,
)
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.inverse_problems import Approximation, LearnedOperator, Reconstruction
from iresflow.tensors import wide_norm
from iresflow.training.objectives.base import Objective
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA = {"images": {"name": "mnist"}}

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
    steps: int = 4000
    """Of training on signals, 128 in a step."""
    through_steps: int = 200
    """Of training the same network on, through its inverse, 64 in a step."""
    through_rate: float = 2e-2
    """Learning rate of that, over 1 - L: an inverse that may amplify more depends more on the
    weights."""
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
        through_steps=10,
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
    _converge(signals, settings.limits, _of_signals(signals, settings), settings.seed, report)
    options = {"batch_size": 32, "learning_rate": 1e-2, "steps": settings.image_steps}
    kinds = _approximating(blur, options)
    nets = _converge(blur, settings.image_limits, kinds, settings.seed, report)["network"]
    z = measured(blur, SHOWN_NOISE, settings.seed)
    shown = {f"L = {limit:g}": inverse_of(net)(z[:SHOWN]) for limit, net in nets.items()}
    rows = {"image": blur.test[:SHOWN], "blurred": z[:SHOWN], **shown}
    report.figure("images", draw_images(rows), f"Reconstructions, noise {SHOWN_NOISE:g}")
    compare_objectives(
        signals,
        report,
        limit=settings.compared_limit,
        noise=settings.compared_noise,
        steps=settings.compared_steps,
        seed=settings.seed,
    )


@final
@dataclass(frozen=True)
class _Kind:
    """A map and how it is trained.

    Attributes:
        build: From a limit.
        objective: From the relative noise of what it shall invert.
        options: Of training, from a limit.
        start: The kind whose trained network it begins with, at each limit; None for a new one.
    """

    build: Callable[[float], LearnedOperator]
    objective: Callable[[float], Objective]
    options: Callable[[float], Mapping[str, Any]]
    start: str | None = None


def _approximating(problem: Problem, options: Mapping[str, Any]) -> dict[str, _Kind]:
    """The problem's maps, as near to its operator as they come."""
    objective = Approximation(problem.operator)
    return {
        name: _Kind(build, lambda noise: objective, lambda limit: options)
        for name, build in problem.networks.items()
    }


def _of_signals(problem: Problem, settings: Settings) -> dict[str, _Kind]:
    """The same, and the network trained on through its inverse.

    From the identity that goes slowly: where K has a small eigenvalue, the gradient of the error
    is smaller by as much.
    """
    options = {"batch_size": 128, "learning_rate": 1e-2, "steps": settings.steps}

    def through(limit: float) -> dict[str, Any]:
        rate = settings.through_rate * (1 - limit)
        return {"batch_size": 64, "learning_rate": rate, "steps": settings.through_steps}

    def reconstruction(noise: float) -> Objective:
        return Reconstruction(problem.operator, deviation_of(problem, noise), tol=1e-4)

    inverse = _Kind(problem.networks["network"], reconstruction, through, start="network")
    return {**_approximating(problem, options), "network, through the inverse": inverse}


def _floats(images: Tensor, levels: int | None, pool: int) -> Tensor:
    if levels is None:
        raise ValueError("the blur is of images, and this data set has none")
    return F.avg_pool2d(images.float() / (levels - 1), pool)


def _converge(
    problem: Problem,
    limits: tuple[float, ...],
    kinds: Mapping[str, _Kind],
    seed: int,
    report: Report,
) -> dict[str, dict[float, LearnedOperator]]:
    """Trains a network for each limit, and measures errors at noises that belong to the limits.

    With the relative noise :math:`\\delta = (1 - L)^2` of each limit, L goes to 1 and
    :math:`\\delta / (1 - L)` to 0.

    Returns:
        The networks of each kind, by their limits.
    """
    noises = [(1 - limit) ** 2 for limit in limits]
    noisy = [measured(problem, noise, seed) for noise in noises]
    rows, curves = [], dict[str, list[list[float]]]()
    nets: dict[str, dict[float, LearnedOperator]] = {}
    for name, kind in kinds.items():
        nets[name] = {}
        for limit, noise in zip(limits, noises, strict=True):
            torch.manual_seed(seed)
            where = report.path / f"{problem.name}-{_as_file(name)}-{limit:g}"
            net = copy.deepcopy(nets[kind.start][limit]) if kind.start else kind.build(limit)
            nets[name][limit] = train_operator(
                net, problem, where, kind.objective(noise), seed, kind.options(limit)
            )
        curves[name] = [errors(problem, inverse_of(net), noisy) for net in nets[name].values()]
        for index, (limit, net) in enumerate(nets[name].items()):
            row = {"kind": name, "L": limit, "noise": noises[index]}
            row |= _described(problem, net, noisy[index])
            rows.append({**row, "error": curves[name][index][index]})
    spectrum = Spectrum.of(problem)
    curves["filter"] = [
        errors(problem, spectrum.filter("squared soft TSVD", 1 - limit), noisy) for limit in limits
    ]
    classical = {name: best_errors(problem, spectrum, name, noisy) for name in FILTERS}
    report.table(f"{problem.name}-limits", rows, CAPTION)
    report.table(f"{problem.name}-errors", _long(limits, noises, curves, classical))
    figure = draw_curves(limits, noises, curves, classical)
    report.figure(problem.name, figure, f"Learned operators: {problem.name}")
    return nets


def _as_file(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


CAPTION = (
    "Of each limit L: the certified bound of the inverse's Lipschitz constant and the largest "
    "ratio of |F^-1(z) - F^-1(z')| to |z - z'| over noise; the mean of |F(x) - K x| / (1 - L) and "
    "of the noise's length in z over 1 - L, relative to |x|; and the mean relative error of "
    "reconstructions, all with relative noise (1 - L)^2."
)


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
