"""The scales of models on images: rows of blocks, with squeezes between them."""

from collections.abc import Callable, Sequence

from iresflow.bijections import (
    Bijection,
    Composition,
    ConditionalPrior,
    MultiScale,
    Squeeze,
)

__all__ = ["Entry", "Prior", "Step", "multi_scale", "require_divisible"]

Entry = Callable[[int], list[Bijection]]
"""Makes what the steps of a scale begin with, from the channels."""

Step = Callable[[int, tuple[int, int], bool], list[Bijection]]
"""Makes one block and what goes with it from the channels, the height and width, and whether no
block comes before it."""

Prior = Callable[[int, int, tuple[int, int]], ConditionalPrior]
"""Makes a prior of what is factored out from the channels that stay, those that are factored out,
and the height and width."""


def require_divisible(shape: Sequence[int], blocks: Sequence[int]) -> None:
    """Raises a ValueError where images of a shape (C, H, W) can't be squeezed between the scales.

    Arguments:
        shape: Of an image.
        blocks: One number for each scale.
    """
    if len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width), got {tuple(shape)}")
    if not blocks:
        raise ValueError("blocks must hold one number for each scale, got none")
    factor = 2 ** (len(blocks) - 1)
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"{len(blocks)} scales halve the image {len(blocks) - 1} times: height and width must "
            f"be multiples of {factor}, got {shape[1]} x {shape[2]}. Use fewer scales, or resize "
            "the images"
        )


def multi_scale(
    shape: tuple[int, int, int],
    blocks: Sequence[int],
    step: Step,
    *,
    factor_out: bool = False,
    prior: Prior | None = None,
    entry: Entry | None = None,
) -> MultiScale:
    """Rows of steps, one row a scale, with a squeeze of 2 x 2 pixels to channels between them.

    Arguments:
        shape: (C, H, W) of what comes in.
        blocks: Steps on each scale, finest first.
        step: Makes one of them.
        factor_out: Whether half of the channels go to the latent after each scale that has steps.
        prior: Makes what maps these channels given those that stay; None for nothing.
        entry: Makes what comes before the steps of a scale that has any; None for nothing.
    """
    channels, height, width = shape
    scales, shapes, factored = [], [], []
    priors: dict[int, ConditionalPrior] = {}
    first = True
    for level, count in enumerate(blocks):
        maps: list[Bijection] = entry(channels) if entry is not None and count else []
        for _ in range(count):
            maps += step(channels, (height, width), first)
            first = False
        last = level == len(blocks) - 1
        if not last:
            maps.append(Squeeze())
            channels, height, width = 4 * channels, height // 2, width // 2
        scales.append(Composition(maps))
        shapes.append((channels, height, width))
        if not last:
            out = channels // 2 if factor_out and count else 0
            factored.append(out)
            channels -= out
            if out and prior is not None:
                priors[level] = prior(channels, out, (height, width))
    return MultiScale(scales, shapes, factored, priors)
