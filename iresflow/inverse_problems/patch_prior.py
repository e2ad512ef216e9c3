"""A prior of patches as a prior of images of any size."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from iresflow.inverse_problems.flow_prior import FlowPrior
from iresflow.inverse_problems.potentials import Potential

__all__ = ["PatchPrior"]

AT_ONCE = 4096
"""Patches whose densities are computed together, which limits the memory."""


@final
class PatchPrior(Potential):
    r"""The mean negative log-density of the overlapping patches, times the patches in an image.

    With patches :math:`P_i x` of d entries each, N of them, and images of D entries, it is

    .. math:: f(x) = \frac{D}{d} \frac{1}{N} \sum_{i=1}^{N} -\log p(P_i x),

    in nats of an image: as if it were cut up into D / d independent patches, and averaged over the
    ways to do so. Pixels near the border are in fewer patches than others.

    Arguments:
        patches: The prior of patches, of a flow on ``(C, h, w)``, or on vectors of as many
            entries. Domain and descent are those of the images.
        size: (C, h, w) of a patch; None for the shape that the flow has.
        stride: Pixels between neighbouring patches; the last one ends at the border in any case.

    Raises:
        ValueError: a flow of another number of entries, or a stride below 1.

    References:
        From Learning Models of Natural Image Patches to Whole Image Restoration (Zoran and Weiss,
        2011). PatchNR (Altekrueger et al., 2023), https://arxiv.org/abs/2205.12021.
    """

    def __init__(
        self, patches: FlowPrior, size: Sequence[int] | None = None, *, stride: int = 1
    ) -> None:
        super().__init__(patches.domain, patches.outside, patches.descent)
        self.size = tuple(patches.shape if size is None else size)
        if len(self.size) != 3:
            raise ValueError(f"a patch is (C, h, w), got {self.size}: pass its size=")
        if math.prod(self.size) != math.prod(patches.shape):
            raise ValueError(
                f"patches of {self.size} have {math.prod(self.size)} entries, and the flow takes "
                f"{math.prod(patches.shape)}"
            )
        if stride < 1:
            raise ValueError(f"stride must be 1 or more, got {stride}")
        self.patches = patches
        self.stride = stride

    def require_images(self, x: Tensor) -> None:
        channels, height, width = self.size
        fits = x.ndim == 4 and x.shape[1] == channels
        if not fits or x.shape[2] < height or x.shape[3] < width:
            raise ValueError(
                f"this prior takes images (B, {channels}, H, W) of {height} x {width} pixels or "
                f"more, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"a prior takes floats, got {x.dtype}")
        if not bool(torch.isfinite(x.detach()).all()):
            raise ValueError("the images hold NaN or infinity")

    def extract(self, x: Tensor) -> Tensor:
        """The patches of images ``(B, C, H, W)`` in the flow's shape, ``(B, N, *shape)``."""
        channels, height, width = self.size
        rows = _starts(x.shape[2], height, self.stride, x.device)
        columns = _starts(x.shape[3], width, self.stride, x.device)
        down = torch.arange(height, device=x.device)
        right = torch.arange(width, device=x.device)
        lines = x.index_select(2, (rows[:, None] + down).flatten())
        cut = lines.index_select(3, (columns[:, None] + right).flatten())
        cut = cut.reshape(len(x), channels, len(rows), height, len(columns), width)
        found = cut.permute(0, 2, 4, 1, 3, 5)
        return found.reshape(len(x), len(rows) * len(columns), *self.patches.shape)

    def negative_log_density(self, x: Tensor) -> Tensor:
        patches = self.extract(x)
        parts = patches.flatten(0, 1).split(AT_ONCE)
        each = torch.cat([self.patches.negative_log_density(part) for part in parts])
        return self._patches_in(x) * each.reshape(patches.shape[:2]).mean(1)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Part by part, so that the graph of no more than one is kept.
        self.require_images(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            inside = self.domain.project(x)
            patches = self.extract(inside)
            parts = patches.detach().flatten(0, 1).split(AT_ONCE)
            found = [self.patches.value_and_gradient(part) for part in parts]
            share = self._patches_in(x) / patches.shape[1]
            pull = share * torch.cat([part[1] for part in found]).reshape(patches.shape)
            beyond = self.beyond(x, inside)
            (gradient,) = torch.autograd.grad((patches * pull).sum() + beyond.sum(), x)
        values = torch.cat([part[0] for part in found]).reshape(patches.shape[:2])
        return share * values.sum(1) + beyond.detach(), gradient

    def _patches_in(self, x: Tensor) -> float:
        return math.prod(x.shape[1:]) / math.prod(self.size)


def _starts(length: int, side: int, stride: int, device: torch.device) -> Tensor:
    """Where patches begin along a line, the last one at its end."""
    starts = torch.arange(0, length - side + 1, stride, device=device)
    last = length - side
    if int(starts[-1]) == last:
        return starts
    return torch.cat([starts, starts.new_tensor([last])])
