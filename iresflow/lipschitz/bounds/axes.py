r"""What a convolution of any stride, dilation and padding reads along one axis of an image.

Output o reads, through tap a, the padded pixel s o + d a. Two consequences serve the bounds:

- Outputs and inputs fall into *parts* that share nothing, such as the sub-grids of a dilated
  convolution. The parts of two axes combine, so the operator is block diagonal, and its norm is
  the largest of the blocks' norms. Most blocks are equal.
- The outputs of one part read it with stride :math:`s / \gcd(s, d)` and dilation 1. And a
  convolution with a stride is a plain one on that many times the channels, the *phases* of the
  input, which the Fourier transform bounds (`iresflow.lipschitz.bounds.symbol`).
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from iresflow.lipschitz.layers.padding import Axis

__all__ = ["Mode", "Reading", "Spectrum", "tap_matrices"]

Mode = Literal["zeros", "circular", "reflect", "replicate"]
"""PyTorch's names of what lies beyond the border."""


@final
@dataclass(frozen=True)
class Spectrum:
    """A circular convolution whose norm, times a gain, bounds that along the axis.

    Attributes:
        size: Pixels of the circle.
        stride: Phases of the input, that is taps that act at the same pixel of the circle.
        dilation: Of the taps.
        closed: Whether the axis is a circle itself, so that no twist of it bounds the norm.
        gain: The norm of what extends the image.
    """

    size: int
    stride: int = 1
    dilation: int = 1
    closed: bool = False
    gain: float = 1.0

    def twists(self) -> tuple[Axis, ...]:
        """Grids each of which gives a bound."""
        own = (Axis(self.size),)
        return own if self.closed else (Axis(self.size, math.pi), *own)

    def phases(self, kernel: Tensor) -> Tensor:
        """The kernel ``(D, C, ..., k)`` of its last axis to ``(D, C stride, ..., l)``."""
        taps = self.dilation * (kernel.shape[-1] - 1) + 1
        reach = math.ceil(taps / self.stride)
        spread = kernel.new_zeros(*kernel.shape[:-1], reach * self.stride)
        spread[..., : taps : self.dilation] = kernel
        return spread.unflatten(-1, (reach, self.stride)).movedim(-1, 2).flatten(1, 2)


@final
@dataclass(frozen=True)
class Reading:
    """One axis of a convolution.

    Attributes:
        size: Pixels of the input.
        taps: Of the kernel.
        stride, dilation: Of the convolution.
        before, after: Pixels by which the input is extended on either side.
        mode: What they hold.

    Raises:
        ValueError: the extended input is too small for the kernel, or the input for the padding.
    """

    size: int
    taps: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    mode: Mode = "zeros"

    def __post_init__(self) -> None:
        if self.size < 1 or self.outputs < 1:
            raise ValueError(
                f"{self.size} pixels, extended by {self.before} and {self.after}, are too few for "
                f"{self.taps} taps with dilation {self.dilation}"
            )
        widest = max(self.before, self.after)
        if widest > {"circular": self.size, "reflect": self.size - 1}.get(self.mode, widest):
            raise ValueError(f"{self.mode} padding by {widest} takes more than {self.size} pixels")

    @property
    def outputs(self) -> int:
        """Pixels of the output."""
        wide = self.size + self.before + self.after
        return (wide - self.dilation * (self.taps - 1) - 1) // self.stride + 1

    @property
    def sources(self) -> np.ndarray:
        """The pixel that each pixel of the extended input copies; -1 for a zero."""
        index, last = np.arange(-self.before, self.size + self.after), self.size - 1
        match self.mode:
            case "zeros":
                return np.where((index >= 0) & (index <= last), index, -1)
            case "circular":
                return index % self.size
            case "reflect":
                return last - abs(last - abs(index))
            case "replicate":
                return index.clip(0, last)

    def places(self) -> np.ndarray:
        """The padded pixel that each output reads through each tap, ``(outputs, taps)``."""
        starts = self.stride * np.arange(self.outputs)
        return starts[:, None] + self.dilation * np.arange(self.taps)

    def parts(self) -> list[np.ndarray]:
        """The different parts: which of its inputs each output reads through each tap, or -1.

        Each is ``(outputs, taps)``, and its inputs are those that it reads.
        """
        # Here, since the package is imported by all who start a program, and scipy takes long.
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        reads = self.sources[self.places()]
        row, tap = (reads >= 0).nonzero()
        links = coo_array(
            (np.ones(len(row)), (row, self.outputs + reads[row, tap])),
            shape=(self.outputs + self.size,) * 2,
        )
        labels = connected_components(links, directed=False)[1][: self.outputs]
        order = np.argsort(labels, kind="stable")
        rows = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        local = (_numbered(reads[part]) for part in rows)
        found = {(part.shape, part.tobytes()): part for part in local if (part >= 0).any()}
        return list(found.values())

    def spectrum(self) -> Spectrum:
        """The circular convolution that bounds it."""
        if self.mode == "circular" and self.size % self.stride == 0:
            return self._circle()
        if self.mode == "zeros":
            return self._line()
        # What is not zero is an image of its own: the extension's columns are orthogonal, so its
        # norm is the root of the most copies that are read.
        read = self.sources[np.unique(self.places())]
        inner = Reading(len(self.sources), self.taps, self.stride, self.dilation)
        line, gain = inner._line(), math.sqrt(np.bincount(read).max()) * (1 + 1e-15)
        return Spectrum(line.size, line.stride, gain=gain)

    def _circle(self) -> Spectrum:
        size = self.size // self.stride
        gain = math.sqrt(math.ceil(self.outputs / size)) * (1 + 1e-15)
        gain = 1.0 if self.outputs <= size else gain
        if self.stride > 1:
            return Spectrum(size, self.stride, self.dilation, closed=True, gain=gain)
        # Multiples of a frequency are the frequencies of a shorter circle.
        size //= math.gcd(size, self.dilation)
        return Spectrum(size, closed=True, gain=gain)

    def _line(self) -> Spectrum:
        if self.taps == 1:
            return Spectrum(1)
        common = math.gcd(self.stride, self.dilation)
        stride, classes = self.stride // common, self.dilation // common
        inside = self.sources[self.places()] >= 0
        size = 1
        for first in range(min(classes, self.outputs)):
            output, tap = inside[first::classes].nonzero()
            if not len(output):
                continue
            # No tap may wrap round from an input that is read to another output: the circle is
            # longer than the distances of inputs and outputs, less the shifts of the taps.
            pixel = output + tap // stride
            reach = (self.taps - 1) // stride
            longest = max(pixel.max() - output.min(), output.max() + reach - pixel.min())
            # An input pixel s u + a of the part is phase a mod s of pixel u + a // s.
            size = max(size, int(longest) + 1)
        return Spectrum(size, stride)


def _numbered(reads: np.ndarray) -> np.ndarray:
    """The inputs that are read, numbered from 0 in their order; -1 stays."""
    known, index = np.unique(reads, return_inverse=True)
    return index.reshape(reads.shape) - int(known[0] < 0)


def tap_matrices(part: np.ndarray) -> Tensor:
    """The 0-1 matrices ``(taps, outputs, inputs)`` of one of `Reading.parts`."""
    outputs, taps = part.shape
    matrices = torch.zeros(taps, outputs, int(part.max()) + 1, dtype=torch.float64)
    row, tap = (part >= 0).nonzero()
    matrices[tap, row, part[row, tap]] = 1
    return matrices
