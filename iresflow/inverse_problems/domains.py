"""The units and the range of images: what a flow is told, and where its density counts."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.models import Flow, ImageFlow

__all__ = ["Domain"]


@final
@dataclass(frozen=True)
class Domain:
    r"""Images whose pixels lie between two ends, and the map from them to what a flow takes.

    A flow is told ``scale * x + offset``. The whole real line is the default.

    Arguments:
        low, high: The ends, in units of the images.
        scale: Above 0.
        offset: In units of the flow.

    Raises:
        ValueError: ends in the wrong order, or a scale that is not positive.
    """

    low: float = -math.inf
    high: float = math.inf
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive, got {self.scale}")

    @classmethod
    def of(cls, flow: Flow) -> "Domain":
        """The domain of a flow: floats in [0, 1] for an `ImageFlow`, and else the real line.

        Image k / (n - 1) of n grey levels stands for the integer k, and an `ImageFlow` knows that
        as the interval from k / n to (k + 1) / n. So an image is told as the middle of it,
        ``((n - 1) x + 1/2) / n``, and black and white lie inside of what the flow is defined for.
        """
        if not isinstance(flow, ImageFlow):
            return cls()
        levels = flow.levels
        return cls(0.0, 1.0, (levels - 1) / levels, 0.5 / levels)

    @property
    def middle(self) -> float:
        """Half-way between the ends; 0 where one is infinite."""
        bounded = math.isfinite(self.low) and math.isfinite(self.high)
        return (self.low + self.high) / 2 if bounded else 0.0

    def project(self, x: Tensor) -> Tensor:
        """The nearest image of the domain; at the ends, its derivative is the one from inside."""
        # What `clamp` has as derivative there depends on the version of PyTorch.
        raised = torch.where(x < self.low, self.low, x)
        return torch.where(x > self.high, self.high, raised)

    def to_flow(self, x: Tensor) -> Tensor:
        """Images in the units of the flow."""
        return self.scale * x + self.offset

    def from_flow(self, x: Tensor) -> Tensor:
        """What the flow knows, as images."""
        return (x - self.offset) / self.scale
