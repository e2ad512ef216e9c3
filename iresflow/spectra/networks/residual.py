"""ResidualNet, a deep residual network as for images (thesis, table A.1).

As `IsotopeNetwork` it follows the code that Behrmann et al. (2018) published, and so has the
2,132,130 parameters that the table names, for the thesis' 27,286 bins and two classes: nine
residual layers of 128 maps, of strides 3, 1, 3, ..., 3. The table's "(5x) 3/1" and "3" are these.
"""

from typing import final

from torch import Tensor, nn

from iresflow.spectra.networks.layers import ResidualLayer, Standardized, convolution
from iresflow.spectra.parameters import require_count
from iresflow.streams import Stream

__all__ = ["ResidualNetwork", "residual_plan"]

FEWEST_BINS = 30
"""ResidualNet reduces spectra until so few bins are left, and then once more."""


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

    Raises:
        ValueError: numbers out of range.
    """

    def __init__(self, bins: int, classes: int) -> None:
        super().__init__()
        require_count(bins=bins)
        require_count(2, classes=classes)
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
