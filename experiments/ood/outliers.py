"""Images from elsewhere: other data sets, images changed, constant ones, noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from iresflow.data.queries import Event
from iresflow.data.queries.named import named_samples

__all__ = ["OUTSIDE", "outside_images"]


def outside_images(name: str, event: Event, test: Tensor, count: int, seed: int) -> Tensor:
    """Images ``(N, C, H, W)`` that are not of a flow's data, N at most ``count``.

    Arguments:
        name: One of `OUTSIDE`, or of a data set, with ``coloured-`` before it for its images in
            one random colour each.
        event: What the flow takes.
        test: Test images of its data, which some are made of.
        count: How many.
        seed: Of what is random.
    """
    generator = torch.Generator().manual_seed(seed)
    if name not in OUTSIDE:
        found = named_samples(name.removeprefix(COLOURED), event)[:count]
        return _in_colour(found, generator) if name.startswith(COLOURED) else found
    return OUTSIDE[name](test[:count].long(), event.levels or 256, generator)


def _permuted(test: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """All pixels in another order, the same for all images."""
    order = torch.randperm(test[0, 0].numel(), generator=generator)
    return test.flatten(2)[:, :, order].view_as(test)


def _inverted(test: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    return levels - 1 - test


def _constant(test: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """Of one grey level each, all equally likely."""
    grey = torch.randint(0, levels, (len(test), 1, 1, 1), generator=generator)
    return grey.expand_as(test).contiguous()


def _noise(test: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, levels, test.shape, generator=generator)


def _in_colour(images: Tensor, generator: torch.Generator) -> Tensor:
    """What is white becomes a colour, all equally likely; black stays."""
    colour = torch.rand(*images.shape[:2], 1, 1, generator=generator, dtype=torch.float64)
    return (images.double() * colour).round().long()


COLOURED = "coloured-"

OUTSIDE: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "permuted": _permuted,
    "inverted": _inverted,
    "constant": _constant,
    "noise": _noise,
}
"""Images that are made, by name."""
