"""The figures of the experiment on Lipschitz limits."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["draw_iterations", "draw_norms", "draw_reconstructions"]


def draw_norms(norms: Mapping[str, Sequence[float]]) -> Figure:
    """The norms of all layers of each network, without limits on the left (figure 4.2)."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in norms.items():
        axes = right if name.startswith("c =") else left
        axes.plot(np.arange(1, len(values) + 1), values, ".-", label=name)
    for axes, title in ((left, "without a limit"), (right, "with a limit c")):
        axes.axhline(1, color="0.5", ls="--", label="1")
        axes.set_xlabel("layer")
        axes.set_ylabel("largest singular value, certified")
        axes.set_title(title, fontsize=11)
        # Below, as the lines of many layers leave no room.
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
    right.set_ylim(bottom=0)
    left.set_ylim(bottom=0)
    return figure


def draw_reconstructions(shown: Mapping[str, Tensor]) -> Figure:
    """Rows of images ``(N, C, H, W)``, such as the originals and what 100 iterations made of the
    latents of each network (figure 4.3)."""
    width = max(len(images) for images in shown.values())
    figure = Figure(figsize=(1.1 * width, 1.35 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, (name, row) in zip(grid, shown.items(), strict=True):
        picture = torch.cat(list(row.double().clamp(0, 1)), dim=2).permute(1, 2, 0).float()
        axes.imshow(picture.squeeze(2).numpy(), cmap="gray")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(name, loc="left", fontsize=9)
    return figure


def draw_iterations(iterations: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """Reconstruction errors against iterations in each block (figure 4.4)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, errors in curves.items():
        axes.semilogy(iterations, np.maximum(errors, 1e-16), ".-", label=name)
    axes.set_xlabel("fixed-point iterations in each block")
    axes.set_ylabel("distance of the reconstruction, median")
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
    return figure
