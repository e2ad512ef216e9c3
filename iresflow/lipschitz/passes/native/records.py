"""What the compiled passes are told of a chain: records that point into tensors' memory."""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from iresflow.lipschitz.passes.native.library import Link

__all__ = ["Records", "address", "empty", "point_to"]

Records = ctypes.Array[Link]
"""One for each link of a chain."""


def address(end: Tensor | Records | None) -> int | None:
    if end is None:
        return None
    return end.data_ptr() if isinstance(end, Tensor) else ctypes.addressof(end)


def point_to(records: Records, name: str, tensors: Sequence[Tensor | None]) -> None:
    """Points all records to tensors."""
    for record, tensor in zip(records, tensors, strict=False):
        if tensor is not None:
            setattr(record, name, tensor.data_ptr())


def empty(x: Tensor, channels: int) -> Tensor:
    """For a result for each pixel of x."""
    if x.ndim != 4:
        return x.new_empty(len(x), channels)
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
