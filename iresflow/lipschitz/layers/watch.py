"""Whether a weight is still the one that something was computed from.

A version counter misses writes through ``.data`` and those of PyTorch's fused optimisers, and a
look at all entries costs more than a small layer's product. So a few entries are looked at each
time, and all of them, by their checksum, only where these or the counter say that the weight may
be another: a copy, or a tensor that was moved or loaded, holds what it held. On a GPU, where a
look is waited for, the counter decides alone, until somebody asks to look again.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

__all__ = ["OnHost", "Watch", "outside_transforms", "version"]

SAMPLES = 16
"""Entries that are looked at each time."""


@final
class Watch:
    """Remembers what a tensor holds."""

    def __init__(self, tensor: Tensor) -> None:
        self._quick = _quick(tensor)
        self._checksum = _checksum(tensor)

    def unchanged(self, tensor: Tensor) -> bool:
        """Whether a tensor holds what was remembered.

        True where it can't be told: of a tensor without memory of its own, as in `torch.func`.
        """
        quick = _quick(tensor)
        if quick is None or quick == self._quick:
            return True
        if _checksum(tensor) != self._checksum:
            return False
        self._quick = quick
        return True

    def look_again(self) -> None:
        """Makes the next `unchanged` look at all entries."""
        self._quick = None


@final
class OnHost:
    """Copies a tensor to the host, for which that waits, only where it may hold something new."""

    def __init__(self) -> None:
        self._copied: tuple[Tensor, tuple[int, int], Tensor] | None = None

    def copy(self, tensor: Tensor) -> Tensor:
        """The tensor, or what it holds, on the CPU; without a graph."""
        if tensor.device.type == "cpu":
            return tensor.detach()
        counted = None if tensor.is_inference() else version(tensor)
        known = self._copied
        if known is not None and known[0] is tensor and known[1] == counted:
            return known[2]
        host = tensor.detach().cpu()
        self._copied = None if counted is None else (tensor, counted, host)
        return host

    def look_again(self) -> None:
        """Makes the next `copy` one."""
        self._copied = None


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Ordinary arithmetic of ordinary tensors: no graph, and no transform of `torch.func`."""
    with torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.no_grad():
        yield


def version(tensor: Tensor) -> tuple[int, int] | None:
    """Changes with each write but those through ``.data``; nothing is read from the device."""
    try:
        pointer = tensor.data_ptr()
    except RuntimeError:  # of what has no memory of its own
        return None
    # Tensors of inference mode count no writes.
    return (0 if tensor.is_inference() else tensor._version, pointer)


def _quick(tensor: Tensor) -> tuple[object, ...] | None:
    counted = version(tensor)
    if counted is None or tensor.is_meta:
        return None
    if tensor.device.type != "cpu":
        return counted  # a look at entries would make the host wait for the device
    with outside_transforms():
        entries = tensor.detach().flatten()[:: max(1, tensor.numel() // SAMPLES)]
        # As bytes, since NaN is not equal to itself.
        return (*counted, entries.double().numpy(force=True).tobytes())


def _checksum(tensor: Tensor) -> int | None:
    if version(tensor) is None or tensor.is_meta:
        return None
    with outside_transforms():
        # Copied, so that lazily negated numbers and zeros are written out.
        data = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor).flatten()
        return zlib.crc32(data.view(torch.uint8).numpy().data)
