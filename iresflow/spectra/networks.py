"""The networks of the thesis' chapter 7 on spectra: IsotopeNet and ResidualNet.

Tables 7.2 and A.1 leave details open. Where they do, these networks follow the code that Behrmann
et al. (2018) published, and so have exactly the numbers of parameters that the tables name, for
the thesis' 27,286 bins and two classes: 13,935 and 2,132,130.

- Convolutions have no bias. BatchNorm has two parameters a map.
- A shortcut is a convolution of kernel 1 where maps or length change.
- The locally connected layer of IsotopeNet has a kernel of 5. Table 7.2 prints 3, with which the
  network would have 10,295 parameters.
- ResidualNet has nine residual layers of 128 maps, of strides 3, 1, 3, ..., 3. Table A.1's
  "(5x) 3/1" and "3" are these.
"""

from typing import final

from torch import Tensor, nn

from iresflow.spectra.checks import Floats, require_count, require_share
from iresflow.spectra.filters import BinFilters, Filters
from iresflow.spectra.layers import (
    LocallyConnected,
    ResidualLayer,
    Standardized,
    convolution,
    dropped,
)
from iresflow.streams import Stream

__all__ = ["IsotopeNetwork", "ResidualNetwork", "count_parameters", "residual_plan"]

FEWEST_BINS = 30
"""ResidualNet reduces spectra until so few bins are left, and then once more."""


def count_parameters(network: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@final
class IsotopeNetwork(nn.Module):
    """From spectra to logits, by features of the size of an isotope pattern (thesis, table 7.2).

    Arguments:
        bins: Of the spectra.
        classes: Of the logits, 2 or more.
        grid: Masses of the bins ``(bins,)`` in daltons; only needed by filters that do.
        filters: The convolutional part; None for `BinFilters`.
        local_kernel: Kernel size of the locally connected layer, odd; 0 for no such layer.
        dropout: Share of features that are lost before it, in training.

    Raises:
        ValueError: numbers out of range, or filters that don't fit the grid.
    """

    def __init__(
        self,
        bins: int,
        classes: int,
        grid: Floats | None = None,
        filters: Filters | None = None,
        local_kernel: int = 5,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        require_share(dropout=dropout)
        if not isinstance(filters, Filters | None):
            raise ValueError(f"filters are BinFilters, PhysicalFilters or None, got {filters!r}")
        if local_kernel != 0:
            require_count(local_kernel=local_kernel)
        self.dropout = float(dropout)
        self.standardized = Standardized()
        self.convolutions, length = (filters or BinFilters()).convolutions(bins, grid)
        self.local: nn.Module = nn.Identity()
        if local_kernel:
            self.local = nn.Sequential(
                LocallyConnected(length, local_kernel),
                nn.Unflatten(1, (1, length)),
                nn.BatchNorm1d(1),
                nn.ReLU(),
                nn.Flatten(),
            )
        self.read_out = nn.Linear(length, classes)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """Logits ``(B, classes)`` of spectra ``(B, bins)``.

        Arguments:
            x: The spectra.
            stream: Of dropout; None for none.
        """
        features = self.convolutions(self.standardized(x)[:, None]).relu().flatten(1)
        logits: Tensor = self.read_out(self.local(dropped(features, self.dropout, stream)))
        return logits


def residual_plan(bins: int) -> list[tuple[int, int]]:
    """The feature maps and strides of ResidualNet's layers for a number of bins.

    For the thesis' 27,286 these are table A.1's; longer spectra are reduced more often.
    """
    plan: list[tuple[int, int]] = []
    maps, width = 16, float(bins)
    while width > FEWEST_BINS:
        wider = min(2 * maps, 128)
        plan += [(maps, 1), (wider, 3)]
        maps, width = wider, width / 3
    return [*plan, (256, 3)]


@final
class ResidualNetwork(nn.Module):
    """From spectra to logits, by a deep residual network for images (thesis, table A.1).

    Arguments:
        bins: Of the spectra.
        classes: Of the logits, 2 or more.
    """

    def __init__(self, bins: int, classes: int) -> None:
        super().__init__()
        self.standardized = Standardized()
        plan = residual_plan(bins)
        inputs = [1, *(maps for maps, _ in plan)]
        layers = [
            _plain_layer(before, maps, stride)
            for before, (maps, stride) in zip(inputs, plan, strict=False)
        ]
        self.convolutions = nn.Sequential(*layers)
        self.read_out = nn.Linear(inputs[-1], classes)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """Logits ``(B, classes)`` of spectra ``(B, bins)``; nothing in it is random."""
        features = self.convolutions(self.standardized(x)[:, None])
        logits: Tensor = self.read_out(features.mean(2))
        return logits


def _plain_layer(inputs: int, maps: int, stride: int) -> ResidualLayer:
    """ReLU, convolution, BatchNorm, ReLU, BatchNorm, convolution: as published."""
    branch = nn.Sequential(
        nn.ReLU(),
        convolution(inputs, maps, 5),
        nn.BatchNorm1d(maps),
        nn.ReLU(),
        nn.BatchNorm1d(maps),
        convolution(maps, maps, 5, stride),
    )
    same = inputs == maps and stride == 1
    return ResidualLayer(branch, nn.Identity() if same else convolution(inputs, maps, 1, stride))
