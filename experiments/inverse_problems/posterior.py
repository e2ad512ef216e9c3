"""Samples of images given a measurement, by Hamiltonian Monte Carlo in the latent of a flow: where
the posterior is known in closed form first, then of a digit from the means of its pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.inverse_problems.flows import image_flow, in_unit_range
from experiments.inverse_problems.hmc import (
    Samples,
    effective_sample_size,
    hamiltonian,
    split_r_hat,
)
from iresflow import ImageFlow
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.inverse_problems import (
    FlowPrior,
    LatentVariable,
    LinearOperator,
    ProjectedQuasiNewton,
    average_pooling,
)
from iresflow.inverse_problems.estimation import first_guess, negative_log_posterior
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run", "sampled"]

DATA: dict[str, dict[str, object]] = {"images": {"name": "digits"}}

TO_THE_MODE = ProjectedQuasiNewton(tol=1e-2, iterations=200)
"""How the mode is found: its place decides how fast chains mix, and not what they sample."""

SPREAD = 2.0
"""Deviation of the chains' starts in units of the posterior's width, so that they disagree."""


@dataclass(kw_only=True)
class Settings(Section):
    """Posterior."""

    seed: int = 0
    """Seed of weights, noise and chains."""
    blocks: tuple[int, ...] = (2, 2)
    """Residual blocks of the flow, on each scale."""
    hidden: int = 16
    """Channels in their branches."""
    levels: int = 16
    """Grey levels that it is trained on."""
    steps: int = 1500
    """Of its training."""
    noise: float = 0.05
    """Deviation of the noise in measurements."""
    chains: int = 4
    """Chains, which begin at latents drawn around the mode."""
    warm_up: int = 60
    """Proposals that set the step."""
    count: int = 150
    """Samples of each chain."""
    leaps: int = 6
    """Leapfrog steps between two of them, at most."""


def quick(settings: Settings) -> Settings:
    return replace(
        settings, blocks=(1, 1), hidden=8, steps=20, chains=2, warm_up=5, count=8, leaps=2
    )


def sampled(
    prior: FlowPrior, operator: LinearOperator, y: Tensor, settings: Settings
) -> tuple[Samples, Tensor]:
    """Chains in the latent given one measurement ``(1, *measured)``, and their images.

    They move in units of the posterior's width about its mode, in all directions: what is
    measured is as narrow as the noise, what is not as wide as the base density.

    Returns:
        The chains in these units, and images ``(C, N, *shape)``.
    """
    chains = settings.chains
    variable = LatentVariable(prior)
    function = negative_log_posterior(
        operator, y.expand(chains, *y.shape[1:]), variable, settings.noise
    )
    index = torch.arange(chains)
    begin = variable.of_images(first_guess(operator, y, prior))
    mode = TO_THE_MODE.minimize(function, begin, variable.project).point
    unit = _unit(prior, operator, variable, mode, settings.noise)

    def energy(u: Tensor) -> tuple[Tensor, Tensor]:
        found = function(mode + u @ unit.mT, index)
        return found.value, found.gradient @ unit

    generator = torch.Generator().manual_seed(settings.seed)
    start = SPREAD * torch.randn(chains, mode.shape[1], generator=generator, dtype=mode.dtype)
    found = hamiltonian(
        energy,
        start,
        settings.count,
        warm_up=settings.warm_up,
        leaps=settings.leaps,
        step=0.2,
        seed=settings.seed,
    )
    with torch.no_grad():
        images = variable.images(mode + found.points.flatten(0, 1) @ unit.mT)
    return found, images.reshape(chains, settings.count, *operator.shape)


def _unit(
    prior: FlowPrior,
    operator: LinearOperator,
    variable: LatentVariable,
    mode: Tensor,
    noise: float,
) -> Tensor:
    """A factor U of :math:`U U^\\top`, the covariance of the normal density that has the
    curvature of the posterior at its mode ``(1, D)``, but for that of the inverse flow."""
    with torch.enable_grad():
        u = mode.detach().requires_grad_()
        seen = operator(variable.images(u)).flatten()
        rows = [torch.autograd.grad(entry, u, retain_graph=True)[0][0] for entry in seen]
    jacobian = torch.stack(rows)
    precision = torch.diag((-2 * prior.flow.base.log_std.detach()).exp().to(mode))
    precision = precision + jacobian.mT @ jacobian / noise**2
    return torch.linalg.inv(torch.linalg.cholesky(precision)).mT


def run(settings: Settings, data: Mapping[str, Dataset], report: Report) -> None:
    """Both parts."""
    torch.set_default_dtype(torch.float64)
    try:
        rows = [_known(settings)]
    finally:
        torch.set_default_dtype(torch.float32)
    report.table("known", rows, "A linear flow of 4 x 4 images: errors in standard errors.")
    dataset = data["images"]
    flow = image_flow(
        dataset,
        report.path / "image-flow",
        blocks=settings.blocks,
        hidden=settings.hidden,
        levels=settings.levels,
        steps=settings.steps,
        seed=settings.seed,
    )
    operator = average_pooling(2, dataset.shape)
    truth = in_unit_range(dataset.test.values[:1], dataset)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    clean = operator(truth)
    y = clean + settings.noise * torch.randn(clean.shape, generator=generator)
    found, images = sampled(FlowPrior(flow), operator, y, settings)
    report.table("digit", [_diagnosed(found, images)], "A digit from means of 2 x 2 pixels.")
    guess = first_guess(operator, y, FlowPrior(flow))
    report.figure("digit", _figure(truth, guess, images), "Samples of images given their means")


def _diagnosed(found: Samples, images: Tensor) -> dict[str, Any]:
    pixels = images.flatten(2).double()
    size, r_hat = effective_sample_size(pixels), split_r_hat(pixels)
    return {
        "samples": images.shape[0] * images.shape[1],
        "accepted": found.accepted,
        "step": found.step,
        "effective sample size, least": float(size.min()),
        "effective sample size, median": float(size.median()),
        "R-hat, largest": float(r_hat.max()),
        "R-hat, median": float(r_hat.median()),
    }


def _known(settings: Settings) -> dict[str, Any]:
    """Means and variances of pixels beside the closed form, in standard errors."""
    torch.manual_seed(settings.seed)
    shape = (1, 4, 4)
    flow = ImageFlow(shape, (2,), [], kernels=(3,), activate_input=False, alpha=0, coeff=0.7)
    flow.initialize(0.5 + 0.15 * torch.randn(500, *shape).clamp(-3, 3))
    prior, operator = FlowPrior(flow), average_pooling(2, shape)
    y = 0.5 + 0.1 * torch.randn(1, 1, 2, 2)
    variable = LatentVariable(prior)
    with torch.no_grad():
        origin = variable.images(torch.zeros(1, 16)).flatten()
        matrix = (variable.images(torch.eye(16)).flatten(1) - origin).mT
        seen = operator(torch.eye(16).reshape(16, *shape)).flatten(1).mT
    mean, variance = flow.base.mean.detach(), (2 * flow.base.log_std.detach()).exp()
    slope = seen @ matrix
    precision = torch.diag(1 / variance) + slope.mT @ slope / settings.noise**2
    right = mean / variance + slope.mT @ (y.flatten() - seen @ origin) / settings.noise**2
    latent = torch.linalg.solve(precision, right)
    expected = matrix @ latent + origin
    spread = (matrix @ torch.linalg.inv(precision) @ matrix.mT).diagonal()
    found, images = sampled(prior, operator, y, settings)
    pixels = images.flatten(2)
    squares = (pixels - expected).square()
    # Chains that alternate seem to know more than so many samples: not counted on here.
    most = pixels.shape[0] * pixels.shape[1]
    size, size_of_squares = (
        effective_sample_size(values).clamp(max=most) for values in (pixels, squares)
    )
    error = (spread / size).sqrt()
    error_of_squares = (squares.flatten(0, 1).var(0) / size_of_squares).sqrt()
    return _diagnosed(found, images) | {
        "mean, largest error": float(((pixels.mean((0, 1)) - expected) / error).abs().max()),
        "variance, largest error": float(
            ((squares.mean((0, 1)) - spread) / error_of_squares).abs().max()
        ),
    }


def _figure(truth: Tensor, guess: Tensor, images: Tensor) -> Figure:
    flat = images.flatten(0, 1)
    shown = {"truth": truth[0], "plain inversion": guess[0], "mean": flat.mean(0)}
    shown |= {"deviation (x 4)": 4 * flat.std(0)}
    shown |= {f"sample {k + 1}": flat[k * (len(flat) // 6)] for k in range(6)}
    figure = Figure(figsize=(1.2 * len(shown), 1.6), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(
            image.clamp(0, 1).movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1
        )
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    return figure
