"""The experiment `experiments.relu.inversion`: its settings, and what it measures."""

from collections.abc import Callable, Mapping
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments.relu.base import Report, Samples
from experiments.relu.inversion.figures import noise_figure
from experiments.relu.inversion.pictures import (
    NOISES,
    draw_digits,
    draw_inpainting,
    stack_codes,
    uniform_noise,
)
from experiments.relu.inversion.settings import METHODS, Settings, quick
from experiments.relu.inversion.vae import Autoencoder, train_autoencoder
from experiments.relu.training import Training
from iresflow.relu.inversion.error_bounds import error_bounds
from iresflow.relu.inversion.gradient_descent import descend
from iresflow.relu.inversion.layer_programs import InfinityNorm
from iresflow.relu.inversion.network_inversion import invert_network
from iresflow.relu.networks.network import Network
from iresflow.relu.networks.parsing import parse_network
from iresflow.threads import threads_for

__all__ = ["DATA", "Settings", "quick", "random_network", "run"]

DATA = {"images": {"name": "mnist"}}

PAPER_SECONDS = {
    "l-infinity": {10: 0.63, 30: 0.73, 50: 0.83, 70: 0.90, 90: 0.95, 110: 1.03, 0: 0.5},
    "l1": {10: 1.05, 30: 1.05, 50: 1.23, 70: 1.28, 90: 1.39, 110: 1.22, 0: 1.1},
    "relaxed": {10: 0.66, 30: 0.53, 50: 0.58, 70: 0.76, 90: 0.75, 110: 0.70, 0: 0.6},
    "gradient descent": {10: 1.59, 30: 1.65, 50: 1.72, 70: 1.80, 90: 2.09, 110: 2.01, 0: 72.0},
}
"""Table 1 of the supplement: CPU seconds by latent dimension; 0 is the MNIST decoder."""

LARGEST = 1e8
"""Floating-point operations of the largest product, about: a batch through the encoder."""

EXACT = 1e-6
"""Largest error of a code, over its norm, that counts as exact."""


def random_network(sizes: tuple[int, ...], seed: int, slope: float = 0.0) -> Network:
    """A network of Gaussian weights of variance 1 / inputs, without bias."""
    stream = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(before, after, bias=False)
        weight = torch.randn(after, before, generator=stream, dtype=torch.float64)
        linear.weight = nn.Parameter(weight / before**0.5)
        parts += [linear, nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return parse_network(nn.Sequential(*parts))


def run(settings: Settings, data: Mapping[str, Samples], report: Report) -> None:
    """Runs the experiment. Errors: as those of training and of the linear programs."""
    # All matrices are small: on a busy machine a second thread would only be waited for.
    with threads_for(LARGEST):
        _run(settings, data, report)


def _run(settings: Settings, data: Mapping[str, Samples], report: Report) -> None:
    images = data["images"].train.flatten(1)[: settings.train_samples]
    sizes = Autoencoder(latent=settings.latent, hidden=settings.decoder, slope=settings.slope)
    training = Training(epochs=settings.epochs, seed=settings.seed)
    encoder, module = train_autoencoder(sizes, images, training)
    decoder = parse_network(module)
    shown = data["images"].test.flatten(1)[: settings.pictures]
    with torch.no_grad():
        codes = encoder(shown)[:, : settings.latent].double()
    stream = torch.Generator().manual_seed(settings.seed)
    shape = tuple(data["images"].test.shape[1:])
    draw_digits(settings, decoder, codes, shape, stream, report)
    draw_inpainting(settings, decoder, codes, shape, stream, report)
    report.table("exact-recovery", _recover(settings), "Without noise, two layers, l-infinity.")
    times = _time(settings, decoder, stream)
    report.table("table-1", times, "CPU seconds a problem, of all threads together; medians.")
    network = random_network((settings.latent, *settings.hidden), settings.seed)
    curves, rows = {}, []
    for name, net in (("random network", network), (f"{data['images'].name} decoder", decoder)):
        for kind, draw in NOISES.items():
            # A stream for each panel, so that one can be drawn without the others.
            own = torch.Generator().manual_seed(settings.seed + 1 + len(curves))
            found = _noise_curves(settings, net, kind, draw, name, own)
            curves[f"{name}, {kind} noise"] = {
                method: np.stack([np.quantile(one[0], (0.25, 0.5, 0.75)) for one in by_noise])
                for method, by_noise in found.items()
            }
            rows += _noise_rows(settings, name, kind, found)
    report.table("figure-5", rows, "Median of |z - z*| / |z*|, 2-norm; of the output in brackets.")
    report.figure("figure-5", noise_figure(settings.noises, curves))
    rows = _bound_rows(settings, network, stream)
    report.table(
        "bounds", rows, "Theorem 3: medians of bounds of |z - z*| in the l-infinity norm."
    )


GUESS = {"uniform": 1.0, "Gaussian": 2.0}
"""The first threshold over the noise: what an expert would guess of its largest value."""


def _codes(network: Network, count: int, stream: torch.Generator) -> Tensor:
    return torch.randn(count, network.in_size, generator=stream, dtype=torch.float64)


def _relative(found: Tensor | None, z: Tensor) -> float:
    return np.inf if found is None else float((found - z).norm() / z.norm())


def _errors(network: Network, found: Tensor, z: Tensor) -> np.ndarray:
    """Relative errors of codes ``(B, k)``, and of what the network makes of them, ``(2, B)``."""
    x, truth = network(found), network(z)
    return np.stack([
        ((found - z).norm(dim=1) / z.norm(dim=1)).numpy(),
        ((x - truth).norm(dim=1) / truth.norm(dim=1)).numpy(),
    ])  # fmt: skip


def _recover(settings: Settings) -> list[dict[str, Any]]:
    rows = []
    for expansion in settings.expansions:
        for slope in (0.0, 0.2):
            exact = said = wrong = 0
            width = settings.latent
            sizes = tuple(round(width * expansion**i) for i in range(3))
            for seed in range(settings.recoveries):
                network = random_network(sizes, settings.seed + seed, slope)
                z = _codes(network, 1, torch.Generator().manual_seed(settings.seed + seed))
                found = invert_network(network, network(z)[0])
                right = _relative(found.z, z[0]) < EXACT
                exact += right
                said += found.determined == "yes"
                wrong += found.determined == "yes" and not right
            rows.append({
                "expansion": expansion,
                "widths": " - ".join(map(str, sizes)),
                "slope": slope,
                "recovered %": 100 * exact / settings.recoveries,
                "called determined %": 100 * said / settings.recoveries,
                "determined but wrong": wrong,
            })  # fmt: skip
    return rows


def _time(settings: Settings, decoder: Network, stream: torch.Generator) -> list[dict[str, Any]]:
    rows = []
    cases = [(k, random_network((k, *settings.hidden), settings.seed)) for k in settings.latents]
    for k, network in tqdm(
        [*cases, (0, decoder)], desc="times", unit="size", dynamic_ncols=True, disable=None
    ):
        for level in (0.0, 0.01):
            z = _codes(network, settings.timed, stream)
            x = network(z) + uniform_noise((settings.timed, network.out_size), level, stream)
            row: dict[str, Any] = {"k": k or f"decoder ({network.in_size})", "noise": level}
            for method in METHODS:
                seconds = []
                for one in x:
                    began = process_time()
                    invert_network(network, one, method, epsilon=level or None)
                    seconds.append(process_time() - began)
                row[method.name] = float(np.median(seconds))
                row[f"{method.name}, paper"] = PAPER_SECONDS[method.name].get(k)
            began = process_time()
            descend(
                network, x[:1], steps=settings.descent_steps, learning_rate=settings.descent_rate,
                generator=stream,
            )  # fmt: skip
            row["gradient descent"] = process_time() - began
            row["gradient descent, paper"] = PAPER_SECONDS["gradient descent"].get(k)
            rows.append(row)
    return rows


def _noise_curves(
    settings: Settings,
    network: Network,
    kind: str,
    draw: Callable[[tuple[int, ...], float, torch.Generator], Tensor],
    name: str,
    stream: torch.Generator,
) -> dict[str, list[np.ndarray]]:
    """Relative errors ``(2, trials)`` of each method and noise: of the code, of the output."""
    found: dict[str, list[np.ndarray]] = {method.name: [] for method in METHODS}
    found["gradient descent"] = []
    for level in tqdm(
        settings.noises, desc=f"{name}, {kind}", unit="noise", dynamic_ncols=True, disable=None
    ):
        z = _codes(network, settings.trials, stream)
        x = network(z) + draw((settings.trials, network.out_size), level, stream)
        for method in METHODS:
            codes = [
                invert_network(network, one, method, epsilon=GUESS[kind] * level).z for one in x
            ]
            found[method.name].append(_errors(network, stack_codes(codes, network.in_size), z))
        descent = descend(
            network, x, steps=settings.descent_steps, learning_rate=settings.descent_rate,
            generator=stream,
        )  # fmt: skip
        found["gradient descent"].append(_errors(network, descent.z, z))
    return found


def _noise_rows(
    settings: Settings, name: str, kind: str, found: Mapping[str, list[np.ndarray]]
) -> list[dict[str, Any]]:
    return [
        {
            "network": name,
            "noise": kind,
            "level": level,
            **{
                method: f"{np.median(by_noise[i][0]):.2g} ({np.median(by_noise[i][1]):.2g})"
                for method, by_noise in found.items()
            },
        }
        for i, level in enumerate(settings.noises)
    ]


def _bound_rows(
    settings: Settings, network: Network, stream: torch.Generator
) -> list[dict[str, Any]]:
    rows = []
    for level in settings.noises[:3]:
        values = []
        z = _codes(network, settings.trials, stream)
        x = network(z) + uniform_noise((settings.trials, network.out_size), level, stream)
        for one, code in zip(x, z, strict=True):
            found = invert_network(network, one, InfinityNorm(), epsilon=level)
            first = error_bounds(network, found, level)[0].lemma
            # Lemma 2 asks for a threshold that is no less than the error of what it is applied to.
            found = invert_network(network, one, InfinityNorm(), epsilon=[first, level])
            bounds = error_bounds(network, found, level)
            error = float((found.z - code).abs().max()) if found.z is not None else np.inf
            last = bounds[-1]
            proven = all(bound.holds for bound in bounds)
            values.append((error, bounds[0].lemma, last.lemma, last.posterior, proven))
        error, first, lemma, posterior, proven = np.array(values).T
        rows.append({
            "noise": level,
            "error": float(np.median(error)),
            "bound of the last layer": float(np.median(first)),
            "bound of the code": float(np.median(lemma)),
            "bound after the solution": float(np.median(posterior)),
            "conditions hold %": 100 * float(proven.mean()),
        })  # fmt: skip
    return rows
