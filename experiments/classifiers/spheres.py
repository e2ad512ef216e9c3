"""Two kinds of attacks on adversarial spheres: perturbations of the decision and perturbations
within it (thesis, examples 6.5 and 6.6, figure 6.3); then networks trained to tell the spheres."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.classifiers.training import train_once
from iresflow import InvertibleClassifier
from iresflow.commands.report import Report
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.base import Objective
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.objectives.independence import Independence
from iresflow.training.probing import latent_parts, probe

__all__ = ["DATA", "Settings", "attack_norms", "max_margin", "quick", "run", "sphere"]

DATA: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Settings:
    """Spheres."""

    seed: int = 0
    """Seed of points, weights and order."""
    dim: int = 500
    """Dimension d of the analytic part (figure 6.3)."""
    unused: int = 10
    """Dimensions n that the misaligned classifier does not see."""
    inner: float = 1.0
    """Radius R1."""
    outer: float = 1.3
    """Radius R2."""
    train: int = 10_000
    """Points on each sphere that the bias b is chosen by."""
    test: int = 10_000
    """Points on each sphere that are attacked."""
    trained_dim: int = 20
    """Dimension of the spheres for the trained networks."""
    blocks: int = 6
    """Residual blocks of these."""
    hidden: int = 128
    """Units in their branches."""
    steps: int = 2500
    """Of their training."""
    trained_train: int = 10_000
    """Points on each sphere that they see."""
    likelihood_weight: float | None = None
    """Weight of the log-likelihood in nats a dimension (independence); null for that of equation
    6.13, the dimension of the nuisance."""
    seeds: int = 3
    """Networks of each kind."""


def quick(settings: Settings) -> Settings:
    return replace(settings, test=2000, train=2000, steps=150, trained_train=2000, seeds=1)


def sphere(count: int, dim: int, radius: float, generator: torch.Generator) -> Tensor:
    """Points ``(count, dim)``, uniform on a sphere, in float64."""
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return radius * x / x.norm(dim=1, keepdim=True)


def max_margin(inner: Tensor, outer: Tensor, used: int) -> float:
    """The bias b of the max-margin classifier by the norm of the used coordinates.

    Raises:
        ValueError: the points can't be told apart by it.
    """
    low, high = float(inner[:, :used].norm(dim=1).max()), float(outer[:, :used].norm(dim=1).min())
    if low > high:
        raise ValueError(f"used norms overlap: {low:.4g} inside and {high:.4g} outside")
    return low + (high - low) / 2


def attack_norms(x: Tensor, used: int, bias: float, outer: float) -> tuple[Tensor, Tensor]:
    r"""The norms ``(N,)`` of the analytic manipulations of points (example 6.6).

    Perturbation: the used part is scaled to norm b, and the unused one such that the norm stays.
    Invariance: the used part stays, and the unused one is scaled to the outer sphere. Both are
    infinite where they don't change what they are to change: a perturbation of a point that the
    classifier takes for an inner one, and an invariance attack on a point of the outer sphere.

    Arguments:
        x: Points ``(N, d)``.
        used: Coordinates that the classifier sees.
        bias: b.
        outer: Radius R2.
    """
    whole, seen, rest = x.norm(dim=1), x[:, :used].norm(dim=1), x[:, used:].norm(dim=1)
    moved = (whole.square() - bias**2).clamp_min(0).sqrt()
    perturbation = torch.hypot(seen - bias, moved - rest)
    # Where b is beyond the sphere there is no such point on it.
    perturbation = torch.where((seen >= bias) & (whole >= bias), perturbation, torch.inf)
    grown = (outer**2 - seen.square()).clamp_min(0).sqrt()
    on_outer = (whole - outer).abs() < 1e-9 * outer
    return perturbation, torch.where(on_outer | (seen >= bias), torch.inf, (grown - rest).abs())


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Runs both parts."""
    _analytic(settings, report)
    rows: list[dict[str, Any]] = []
    for seed in range(settings.seeds):
        rows += [
            _trained(settings, report.path, kind, seed)
            for kind in ("cross-entropy", "independence")
        ]
    report.table(
        "trained",
        rows,
        f"Networks on spheres in {settings.trained_dim} dimensions. A metamer has the logits of "
        "an inner point and the nuisance of an outer one; it turns into another class where it is "
        "nearer to the outer sphere and still called inner. Means of test points.",
    )


def _analytic(settings: Settings, report: Report) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    used = settings.dim - settings.unused
    radii = {"inner": settings.inner, "outer": settings.outer}
    train = {n: sphere(settings.train, settings.dim, r, generator) for n, r in radii.items()}
    bias = max_margin(train["inner"], train["outer"], used)
    test = {n: sphere(settings.test, settings.dim, r, generator) for n, r in radii.items()}
    norms = np.linspace(0, 1.2, 241)
    curves: dict[str, dict[str, np.ndarray]] = {}
    rows = []
    for name, x in test.items():
        right = (x[:, :used].norm(dim=1) >= bias) == (name == "outer")
        attacks = attack_norms(x, used, bias, settings.outer)
        curves[name] = {}
        for kind, needed in zip(("perturbation", "invariance"), attacks, strict=True):
            held = (needed[right][:, None] > torch.from_numpy(norms)).double().sum(0) / len(x)
            curves[name][kind] = held.numpy()
            finite = needed[needed.isfinite()]
            rows.append(
                {
                    "sphere": name,
                    "attack": kind,
                    "accuracy without attack": float(right.double().mean()),
                    "points that it reaches": len(finite) / len(x),
                    "smallest norm": float(finite.min()) if len(finite) else None,
                    "median norm": float(finite.median()) if len(finite) else None,
                    "largest norm": float(finite.max()) if len(finite) else None,
                }
            )
    report.table(
        "analytic",
        rows,
        f"d = {settings.dim}, n = {settings.unused} unused, R = {settings.inner} and "
        f"{settings.outer}, b = {bias:.4f} (example 6.6): what an attack takes on the manifold.",
    )
    report.figure("analytic", _figure(norms, curves), "Accuracy against the norm (figure 6.3)")


def _figure(norms: np.ndarray, curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    titles = {"perturbation": "perturbation of the decision", "invariance": "within the decision"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name in curves:
            axes.plot(norms, curves[name][kind], label=f"{name} sphere")
        axes.set_xlabel("norm of the manipulation")
        axes.set_ylabel("accuracy")
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(title, fontsize=11)
        axes.legend()
    return figure


def _spheres(settings: Settings, count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    dim = settings.trained_dim
    inner = sphere(count, dim, settings.inner, generator)
    outer = sphere(count, dim, settings.outer, generator)
    labels = torch.arange(2).repeat_interleave(count)
    return Batch(torch.cat([inner, outer]).float(), labels)


@torch.no_grad()
def _measured(
    net: InvertibleClassifier, train: Batch, test: Batch, settings: Settings
) -> dict[str, Any]:
    """What a network keeps where, and its metamers."""
    inner, outer = test.values.split(len(test) // 2)
    found = net.metamer(inner, outer)
    radius = found.images.double().norm(dim=1)
    middle = (settings.inner + settings.outer) / 2
    called_inner = net(found.images).argmax(1) == 0
    error = (net(test.values).argmax(1) != test.labels).double().mean()
    with torch.enable_grad():
        knowledge = probe(*(latent_parts(net, part)[1] for part in (train, test)), 2)
    return {
        "test error": float(error),
        "nuisance: accuracy of a fresh classifier": knowledge.accuracy,
        "nuisance: nats of the class, at least": knowledge.nats,
        "norm of metamers": float(radius.mean()),
        "metamers of another class, still called inner": float(
            ((radius > middle) & called_inner).double().mean()
        ),
        "certified radius, median": float(net.certified_radius(test.values).median()),
    }


def _trained(settings: Settings, path: Path, kind: str, seed: int) -> dict[str, Any]:
    train = _spheres(settings, settings.trained_train, 3 * seed)
    held, test = (_spheres(settings, 1000, 3 * seed + k) for k in (1, 2))
    torch.manual_seed(seed)
    net = InvertibleClassifier(
        (settings.trained_dim,),
        2,
        settings.blocks,
        settings.hidden,
        pad=0,
        read_out="simplified",
    )
    independent = kind == "independence"
    weight = settings.likelihood_weight
    weight = float(settings.trained_dim - 2) if weight is None else weight
    objective: Objective = Independence.of(net, weight) if independent else CrossEntropy()
    train_once(
        net,
        train,
        held,
        path / f"{kind}-{seed}",
        objective=objective,
        seed=seed,
        steps=settings.steps,
        batch_size=128,
        learning_rate=2e-3,
        validation_samples=2000,
    )
    return {"objective": kind, "seed": seed, **_measured(net, train, test, settings)}
