"""Pictures that generative ReLU networks are inverted from: noisy ones, and parts of them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from experiments.relu.base import Report
from experiments.relu.inversion.figures import picture_figure
from experiments.relu.inversion.settings import METHODS, Settings
from iresflow.relu.inversion.gradient_descent import descend
from iresflow.relu.inversion.measurements import observe_part
from iresflow.relu.inversion.network_inversion import invert_network
from iresflow.relu.networks.network import Network

__all__ = ["NOISES", "draw_digits", "draw_inpainting", "stack_codes", "uniform_noise"]


def uniform_noise(shape: tuple[int, ...], level: float, stream: torch.Generator) -> Tensor:
    return level * (2 * torch.rand(shape, generator=stream, dtype=torch.float64) - 1)


def gaussian_noise(shape: tuple[int, ...], level: float, stream: torch.Generator) -> Tensor:
    return level * torch.randn(shape, generator=stream, dtype=torch.float64)


NOISES: dict[str, Callable[[tuple[int, ...], float, torch.Generator], Tensor]] = {
    "uniform": uniform_noise,
    "Gaussian": gaussian_noise,
}


def draw_digits(
    settings: Settings,
    decoder: Network,
    z: Tensor,
    shape: tuple[int, ...],
    stream: torch.Generator,
    report: Report,
) -> None:
    truth = decoder(z)
    x = truth + gaussian_noise(tuple(truth.shape), settings.picture_noise, stream)
    rows = {"truth": truth, "observed": x}
    for method in METHODS:
        codes = [
            invert_network(decoder, one, method, epsilon=2 * settings.picture_noise).z for one in x
        ]
        rows[method.name] = decoder(stack_codes(codes, decoder.in_size))
    descent = descend(
        decoder, x, steps=settings.descent_steps, learning_rate=settings.descent_rate,
        generator=stream,
    )  # fmt: skip
    rows["gradient\ndescent"] = decoder(descent.z)
    report.figure("digits", picture_figure(rows, truth, shape))


def draw_inpainting(
    settings: Settings,
    decoder: Network,
    z: Tensor,
    shape: tuple[int, ...],
    stream: torch.Generator,
    report: Report,
) -> None:
    """Figure 6: the lower half, or a random half of the pixels, is hidden."""
    height, width = shape[-2:]
    half = torch.ones(height, width, dtype=torch.bool)
    half[height // 2 :] = False
    random = torch.rand(height, width, generator=stream) < 0.5
    numbers = []
    for name, mask in (("lower half hidden", half), ("half of the pixels hidden", random)):
        known = mask.expand(shape).flatten()
        truth = decoder(z)
        x = truth + gaussian_noise(tuple(truth.shape), settings.picture_noise / 5, stream)
        part = observe_part(decoder, known)
        found = [
            invert_network(part, one[known], epsilon=2 * settings.picture_noise / 5) for one in x
        ]
        ours = decoder(stack_codes([inversion.z for inversion in found], decoder.in_size))
        descent = descend(
            part, x[:, known], steps=settings.descent_steps, learning_rate=settings.descent_rate,
            generator=stream,
        )  # fmt: skip
        theirs = decoder(descent.z)
        rows = {
            "truth": truth,
            "observed": torch.where(known, x, 0.5),
            "l-infinity": ours,
            "gradient\ndescent": theirs,
        }
        report.figure(name.replace(" ", "-"), picture_figure(rows, truth, shape))
        numbers.append({
            "hidden": name,
            "l-infinity, error of a pixel": float((ours - truth).square().mean().sqrt()),
            "gradient descent": float((theirs - truth).square().mean().sqrt()),
            "determined %": 100 * float(np.mean([one.determined == "yes" for one in found])),
        })  # fmt: skip
    report.table("inpainting", numbers, "Root mean square over all pixels, hidden ones included.")


def stack_codes(codes: list[Tensor | None], size: int) -> Tensor:
    none = torch.zeros(size, dtype=torch.float64)
    return torch.stack([none if code is None else code for code in codes])
