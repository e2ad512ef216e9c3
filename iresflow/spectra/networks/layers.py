"""The layers of networks on spectra: residual layers, and one whose weights are not shared."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.streams import NORMAL, UNIFORM, Stream, draw

__all__ = [
    "LocallyConnected",
    "ResidualLayer",
    "Standardized",
    "convolution",
    "dropped",
    "shifted",
]


def convolution(inputs: int, maps: int, kernel_size: int, stride: int = 1) -> nn.Conv1d:
    """A convolution without bias that keeps the length L, or makes it ceil(L / stride).

    Its weights are drawn as He et al. (2015) say.
    """
    layer = nn.Conv1d(
        inputs, maps, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


@final
class ResidualLayer(nn.Module):
    """``shortcut(x) + branch(x)``.

    Arguments:
        branch: From ``(B, C, L)`` to ``(B, C', L')``.
        shortcut: Between the same shapes; `nn.Identity` where they are equal.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, C, L)`` to ``(B, C', L')``."""
        out: Tensor = self.shortcut(x) + self.branch(x)
        return out


@final
class LocallyConnected(nn.Module):
    """A convolution that has weights of its own at each place, without bias; padded with zeros.

    Arguments:
        length: L, of its input and output.
        kernel_size: Odd.

    Raises:
        ValueError: an even kernel size.
    """

    def __init__(self, length: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"the kernel size of a local layer is odd, got {kernel_size}")
        self.weight = nn.Parameter(torch.empty(length, kernel_size))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, L)`` to ``(B, L)``."""
        kernel_size = self.weight.shape[1]
        windows = F.pad(x, 2 * (kernel_size // 2,)).unfold(1, kernel_size, 1)
        return torch.einsum("blk,lk->bl", windows, self.weight)


@final
class Standardized(nn.Module):
    """Divides intensities by one number, so that what a network gives depends on no unit."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the number, to the root mean square of intensities; 1 if all are 0."""
        scale = x.square().mean().sqrt()
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Intensities of any shape, in the new unit."""
        return x / self.scale


def dropped(x: Tensor, share: float, stream: Stream | None) -> Tensor:
    """Values ``(B, L)`` with a random share set to 0 and the others enlarged (dropout).

    Not `nn.Dropout`, which draws from the global stream, and so not the same in parts of a batch.

    Arguments:
        x: The values.
        share: Of them, that is lost on average.
        stream: What decides; None to keep all as they are.
    """
    if stream is None or share == 0:
        return x
    drawn = draw(UNIFORM, x.shape, stream, batch=0, device=x.device, dtype=x.dtype)
    return torch.where(drawn < share, 0.0, x / (1 - share))


def shifted(x: Tensor, deviation: float, stream: Stream) -> Tensor:
    """Spectra ``(B, bins)``, each moved along the bins: what an error of the mass scale does.

    Between bins values are linear, and beyond the ends as at the ends.

    Arguments:
        x: The spectra.
        deviation: Of the normal numbers by which they are moved, in bins; 0 to leave all in place.
        stream: What the numbers are drawn from.
    """
    if deviation == 0:
        return x
    bins = x.shape[1]
    by = deviation * draw(NORMAL, (len(x), 1), stream, batch=0, device=x.device, dtype=x.dtype)
    places = (torch.arange(bins, device=x.device) + by).clamp(0, bins - 1)
    left = places.floor()
    right = (left + 1).clamp(max=bins - 1)
    return torch.lerp(x.gather(1, left.long()), x.gather(1, right.long()), places - left)
