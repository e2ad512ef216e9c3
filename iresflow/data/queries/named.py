"""Samples of a named data set, brought to what a model takes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.data.loading import load_dataset
from iresflow.data.queries.base import Event

__all__ = ["named_samples"]

_BITS = 256


def named_samples(name: str, event: Event, root: str | Path | None = None) -> Tensor:
    """The test samples of a data set, as a model of other data takes them.

    Images are resized (antialiased), grey ones repeated in all channels, and their grey levels
    spread over the model's.

    Arguments:
        name: Of a data set that needs no path of its own.
        event: What the model takes.
        root: Where data sets lie, see :func:`iresflow.data.load_images`.

    Raises:
        ValueError: the name is unknown, or the set is of another kind than the model's samples.
        DataError: its files are missing.
    """
    dataset = load_dataset(name, root)
    values = dataset.test.values
    if (dataset.levels is None) != (event.levels is None):
        kinds = ("images", "vectors") if event.levels is None else ("vectors", "images")
        raise ValueError(f"{name} is a set of {kinds[0]}, and the model is of {kinds[1]}")
    if event.levels is None or dataset.levels is None:
        if dataset.shape != event.shape:
            raise ValueError(f"{name} has {dataset.shape[0]} columns, the model {event.shape[0]}")
        return values
    channels, height, width = event.shape
    if values.shape[1] not in (1, channels):
        raise ValueError(f"{name} has {values.shape[1]} channels, the model {channels}")
    # Bytes of full range, so that resizing rounds as little as they do.
    bright = _spread(values, dataset.levels, _BITS).to(torch.uint8)
    if tuple(bright.shape[2:]) != (height, width):
        bright = F.interpolate(bright, (height, width), mode="bilinear", antialias=True)
    return _spread(bright, _BITS, event.levels).expand(-1, channels, -1, -1).contiguous()


def _spread(values: Tensor, levels: int, others: int) -> Tensor:
    """Grey levels of one number of them as levels of another: black and white stay."""
    return (values.double() * (others - 1) / (levels - 1)).round().long()
