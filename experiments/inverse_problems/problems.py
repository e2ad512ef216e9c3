"""What is restored, how well, and how it looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from matplotlib.figure import Figure
from torch import Tensor

from iresflow.inverse_problems import LinearOperator, average_pooling, blur, identity, masking

__all__ = ["Problem", "picture", "problems", "psnr"]


@final
@dataclass(frozen=True)
class Problem:
    """What was measured, and with what noise."""

    operator: LinearOperator
    noise: float


def problems(shape: tuple[int, ...], noise: float, seed: int) -> dict[str, Problem]:
    """The four of them, by name, for images of a shape."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(1, *shape[1:], generator=generator) < 0.4).float().expand(*shape)
    axis = torch.arange(-3.0, 4.0)
    bell = (-axis.square() / (2 * 1.5**2)).exp()
    kernel = bell[:, None] * bell
    return {
        "denoising": Problem(identity(shape), 3 * noise),
        "inpainting": Problem(masking(mask), noise),
        "deblurring": Problem(blur(kernel / kernel.sum(), shape), noise / 2),
        "superresolution": Problem(average_pooling(2, shape), noise / 2),
    }


def psnr(found: Tensor, truth: Tensor) -> Tensor:
    """Decibels ``(B,)`` of images in [0, 1], what is outside of it cut off."""
    error = (found.clamp(0, 1) - truth).square().flatten(1).mean(1)
    return -10 * error.log10()


def picture(shown: Mapping[str, Tensor]) -> Figure:
    """Images ``(B, C, H, W)``, a line for each name."""
    count = len(next(iter(shown.values())))
    figure = Figure(figsize=(1.1 * count + 1.6, 1.15 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), count, squeeze=False)
    for line, (name, images) in zip(axes, shown.items(), strict=True):
        for place, image in zip(line, images, strict=True):
            pixels = image.clamp(0, 1).movedim(0, -1).squeeze(-1).numpy()
            place.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
