"""The convolutional part of IsotopeNet: filters over bins (thesis), or over daltons (outlook)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import nn

from iresflow.spectra.checks import Floats
from iresflow.spectra.grids import bin_edges, equidistant_grid
from iresflow.spectra.networks.layers import ResidualLayer, convolution
from iresflow.spectra.networks.physical import PhysicalConvolution
from iresflow.spectra.parameters import require_count, require_positive

__all__ = ["BinFilters", "Filters", "PhysicalFilters", "reduced_length"]


def reduced_length(bins: int, strides: tuple[int, ...]) -> int:
    """The length of maps after convolutions of some strides, each rounded up."""
    for stride in strides:
        bins = -(-bins // stride)
    return bins


class Filters(ABC):
    """How residual layers look at a spectrum."""

    @abstractmethod
    def convolutions(self, bins: int, grid: Floats | None) -> tuple[nn.Sequential, int]:
        """New residual layers from ``(B, 1, bins)`` to ``(B, 1, L)``, and L.

        Arguments:
            bins: Of the spectra.
            grid: The bins' masses in daltons, or None where they are not known.

        Raises:
            ValueError: such filters need a grid, or don't fit this one.
        """


@final
@dataclass(frozen=True)
class BinFilters(Filters):
    """Filters that reach over a number of bins, as in the thesis (table 7.2).

    Four residual layers of depth 2; the defaults are the thesis'. As in the published code of
    Behrmann et al. (2018), the second convolution of a layer has the stride.

    Arguments:
        strides: One for each residual layer.
        maps: The feature maps of each, 1 in the last one.
        kernel_size: Of all convolutions, odd, in the bins (of their own input).

    Raises:
        ValueError: numbers out of range, or not as many strides as maps.
    """

    strides: tuple[int, ...] = (1, 5, 1, 3)
    maps: tuple[int, ...] = (8, 8, 8, 1)
    kernel_size: int = 3

    def __post_init__(self) -> None:
        for name in ("strides", "maps"):
            if not isinstance(value := getattr(self, name), list | tuple):
                raise ValueError(f"{name} are whole numbers, one for each layer, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if len(self.strides) != len(self.maps) or not self.maps:
            raise ValueError(
                f"each residual layer has a stride and a number of maps, got {self.strides} and "
                f"{self.maps}"
            )
        for stride, maps in zip(self.strides, self.maps, strict=True):
            require_count(strides=stride, maps=maps)
        if self.maps[-1] != 1:
            raise ValueError(f"the last map is one alone, got {self.maps}")
        require_count(kernel_size=self.kernel_size)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")

    def convolutions(self, bins: int, grid: Floats | None) -> tuple[nn.Sequential, int]:
        """As the base; needs no grid."""
        inputs = (1, *self.maps)
        layers = [
            _residual_layer(*pair, self.kernel_size, stride)
            for pair, stride in zip(
                zip(inputs, self.maps, strict=False), self.strides, strict=True
            )
        ]
        return nn.Sequential(*layers), reduced_length(bins, self.strides)


@final
@dataclass(frozen=True)
class PhysicalFilters(Filters):
    """Filters that reach over a number of daltons, whatever the bins there (thesis, section 7.5).

    Two residual layers of `PhysicalConvolution`, the second of which leads to masses of equal
    distance. On these, two residual layers of ordinary convolutions with kernels of 3 have a fixed
    width in daltons, too. So all is as in IsotopeNet, but for the unit of widths and strides.

    Arguments:
        spacing: Distance of the first filters' knots in daltons; they reach over four of it. The
            default is the thesis' mean width of a bin.
        distance: Of the masses that the second layer leads to, in daltons, up to the rounding that
            fills the grid; the default is that of 5 mean bins.
        stride: Of the last residual layer, in these distances.
        maps: The feature maps of all layers but the last one.

    Raises:
        ValueError: numbers out of range.
    """

    spacing: float = 0.163
    distance: float = 0.815
    stride: int = 3
    maps: int = 8

    def __post_init__(self) -> None:
        require_positive(spacing=self.spacing, distance=self.distance)
        require_count(stride=self.stride, maps=self.maps)

    def convolutions(self, bins: int, grid: Floats | None) -> tuple[nn.Sequential, int]:
        """As the base; needs a grid."""
        if grid is None:
            raise ValueError("filters of a width in daltons need the masses of the bins: grid=...")
        edges = bin_edges(grid)
        masses = equidistant_grid(edges[0], edges[-1], self.distance)
        first = self._physical_layer(1, grid, grid, nn.Conv1d(1, self.maps, 1, bias=False))
        shortcut = PhysicalConvolution(self.maps, self.maps, grid, masses, self.distance, 1)
        second = self._physical_layer(self.maps, grid, masses, shortcut)
        third = _residual_layer(self.maps, self.maps, 3, 1)
        fourth = _residual_layer(self.maps, 1, 3, self.stride)
        length = reduced_length(len(masses), (self.stride,))
        return nn.Sequential(first, second, third, fourth), length

    def _physical_layer(
        self, inputs: int, grid: Floats, masses: Floats, shortcut: nn.Module
    ) -> ResidualLayer:
        return ResidualLayer(
            _branch(
                PhysicalConvolution(inputs, self.maps, grid, grid, self.spacing),
                PhysicalConvolution(self.maps, self.maps, grid, masses, self.spacing),
                self.maps,
            ),
            shortcut,
        )


def _residual_layer(inputs: int, maps: int, kernel_size: int, stride: int) -> ResidualLayer:
    same = inputs == maps and stride == 1
    return ResidualLayer(
        _branch(
            convolution(inputs, maps, kernel_size),
            convolution(maps, maps, kernel_size, stride),
            maps,
        ),
        nn.Identity() if same else convolution(inputs, maps, 1, stride),
    )


def _branch(first: nn.Module, second: nn.Module, maps: int) -> nn.Sequential:
    """ReLU, convolution and BatchNorm, twice: the order of the published code."""
    return nn.Sequential(
        nn.ReLU(),
        first,
        nn.BatchNorm1d(maps),
        nn.ReLU(),
        second,
        nn.BatchNorm1d(maps),
    )
