"""IsotopeNet, a network whose features are of the size of isotope patterns (thesis, table 7.2).

The table leaves details open. Where it does, the network follows the code that Behrmann et al.
(2018) published, and so has exactly the number of parameters that the table names, 13,935 for the
thesis' 27,286 bins and two classes.

- Convolutions have no bias. BatchNorm has two parameters a map.
- A shortcut is a convolution of kernel 1 where maps or length change.
- The locally connected layer has a kernel of 5. Table 7.2 prints 3, with which the network would
  have 10,295 parameters.
"""

from typing import final

from torch import Tensor, nn

from iresflow.spectra.checks import Floats, require_grid
from iresflow.spectra.networks.filters import BinFilters, Filters
from iresflow.spectra.networks.layers import LocallyConnected, Standardized, dropped
from iresflow.spectra.parameters import require_count, require_share
from iresflow.streams import Stream

__all__ = ["IsotopeNetwork"]


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
        require_count(bins=bins)
        require_count(2, classes=classes)
        require_share(dropout=dropout)
        grid = None if grid is None else require_grid(grid, bins)
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
