"""The flows that serve as priors here: of whole images, and of patches."""

from pathlib import Path

import torch
from torch import Tensor

from experiments.classifiers.training import train_once
from iresflow import ImageFlow, PowerSeries, VectorFlow
from iresflow.data import Dataset
from iresflow.models.parts.images import require_integers
from iresflow.training.loop.batches import Batch

__all__ = ["SIDE", "image_flow", "in_unit_range", "patch_flow", "random_patches", "requantized"]

SIDE = 6
"""Pixels on the side of a patch, as PatchNR has them."""


def in_unit_range(images: Tensor, dataset: Dataset) -> Tensor:
    """Integer images of a data set as floats in [0, 1], black and white at the ends."""
    require_integers(images, dataset.shape, dataset.levels or 256)
    return images.float() / ((dataset.levels or 256) - 1)


def requantized(images: Tensor, dataset: Dataset, levels: int) -> Tensor:
    """Integer images of a data set in other grey levels, equally far apart, ends kept."""
    return (in_unit_range(images, dataset).double() * (levels - 1)).round().to(torch.uint8)


def image_flow(
    dataset: Dataset,
    where: Path,
    *,
    blocks: tuple[int, ...],
    hidden: int,
    levels: int,
    steps: int,
    seed: int,
) -> ImageFlow:
    """A flow of whole images, trained in a directory or taken from it."""
    torch.manual_seed(seed)
    flow = ImageFlow(
        dataset.shape,
        blocks,
        hidden,
        levels=levels,
        alpha=0,
        coeff=0.98,
        factor_out=False,
        log_det=PowerSeries(8, tol=1e-2),
    )
    train_once(
        flow,
        Batch(requantized(dataset.train.values, dataset, levels), None),
        Batch(requantized(dataset.validation.values[:200], dataset, levels), None),
        where,
        seed=seed,
        steps=steps,
        batch_size=32,
        learning_rate=3e-3,
        decay_steps=0.3,
        validate_every=0.25,
    )
    return flow


def patch_flow(
    patches: Tensor, where: Path, *, blocks: int, hidden: int, steps: int, seed: int
) -> VectorFlow:
    """A flow of patches as vectors ``(N, D)``, trained in a directory or taken from it."""
    torch.manual_seed(seed)
    flow = VectorFlow(
        patches.shape[1], blocks, hidden, coeff=0.98, log_det=PowerSeries(8, tol=1e-2)
    )
    held = len(patches) // 50
    train_once(
        flow,
        Batch(patches[held:], None),
        Batch(patches[:held], None),
        where,
        seed=seed,
        steps=steps,
        batch_size=256,
        learning_rate=3e-3,
        decay_steps=0.3,
        validate_every=0.25,
    )
    return flow


def random_patches(images: Tensor, count: int, deviation: float, seed: int) -> Tensor:
    """Patches of images with some noise, so that they have a density, as vectors ``(N, D)``.

    Arguments:
        images: ``(N, C, H, W)`` floats in [0, 1].
        count: N, spread over all images and places.
        deviation: Of the normal noise.
        seed: Of places and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = images.shape[-2:]
    which = torch.randint(len(images), (count,), generator=generator)
    top = torch.randint(height - SIDE + 1, (count,), generator=generator)
    left = torch.randint(width - SIDE + 1, (count,), generator=generator)
    window = torch.arange(SIDE)
    rows, columns = top[:, None] + window, left[:, None] + window
    moved = images.movedim(1, -1)
    found = moved[which[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return (found + deviation * torch.randn(found.shape, generator=generator)).flatten(1)
