"""What a network sees of a spectrum, and which one suits a grid (thesis, section 7.3.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from iresflow.spectra.checks import Floats, require_grid
from iresflow.spectra.networks.filters import BinFilters
from iresflow.spectra.networks.layers import ResidualLayer
from iresflow.spectra.parameters import require_positive
from iresflow.spectra.patterns import pattern_bins, pattern_extent

__all__ = ["Suggestion", "count_parameters", "receptive_field", "suggest_architecture"]

POINTWISE = (nn.ReLU, nn.BatchNorm1d, nn.Identity)


def count_parameters(network: nn.Module | object) -> int:
    """How many numbers are trained, of a network or of a fitted estimator.

    Raises:
        ValueError: it is neither.
    """
    parameters = _network_of(network).parameters()
    return sum(p.numel() for p in parameters if p.requires_grad)


def receptive_field(network: nn.Module | object) -> int:
    """How many bins of a spectrum one feature of the convolutional part depends on.

    A convolution of kernel k adds ``(k - 1)`` times the product of the strides before it (Luo et
    al., 2016). IsotopeNet's four layers see 49 bins. The 43 of figure 7.3 are what is left without
    the three convolutions of kernel 3 before the first stride.

    Arguments:
        network: One of this room, a fitted estimator, or a chain of one-dimensional convolutions,
            `ResidualLayer` and `nn.Sequential`.

    Raises:
        ValueError: it holds something else, such as filters in daltons.
    """
    module = _network_of(network)
    convolutions: nn.Module = getattr(module, "convolutions", module)
    field, jump = 1, 1
    for kernel_size, stride in _chain(convolutions):
        field, jump = field + (kernel_size - 1) * jump, jump * stride
    return field


def _network_of(network: object) -> nn.Module:
    """The network itself, or that of a fitted estimator."""
    found = getattr(network, "network_", network)
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"a network or a fitted estimator with one is needed, got a {type(found).__name__}"
        )
    return found


def _chain(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Kernel sizes and strides of the convolutions on the widest way through a module."""
    if isinstance(module, ResidualLayer):
        yield from _chain(module.branch)  # the shortcut has the same strides, and kernels of 1
    elif isinstance(module, nn.Sequential):
        for part in module:
            yield from _chain(part)
    elif isinstance(module, nn.Conv1d):
        yield (module.kernel_size[0] - 1) * module.dilation[0] + 1, module.stride[0]
    elif not isinstance(module, POINTWISE):
        raise ValueError(
            f"a {type(module).__name__} has no receptive field in bins; allowed are chains of "
            "convolutions, residual layers, ReLU and BatchNorm"
        )


@final
@dataclass(frozen=True)
class Suggestion:
    """An architecture for a grid, and what it was chosen by.

    Attributes:
        filters: The convolutional part of an IsotopeNet.
        receptive_field: Of these, in bins.
        largest_pattern: Bins of the largest isotope pattern on the grid.
        bins_per_peak: Bins of mean width between two peaks of a pattern.
    """

    filters: BinFilters
    receptive_field: int
    largest_pattern: int
    bins_per_peak: float


def suggest_architecture(
    grid: ArrayLike,
    peak_width: float = 0.3,
    peak_distance: float = 1.0,
    *,
    threshold: float = 0.005,
    maps: int = 8,
) -> Suggestion:
    """An IsotopeNet for a grid, as section 7.3.2 argues.

    The first stride is one less than the bins between two peaks on average, rounded down (6.14
    bins, stride 5), so that little is lost where bins are wide. As many residual layers of kernel
    3 follow as make the receptive field cover the largest isotope pattern, one at least before
    the last. The last stride is such that three features side by side see no more than a
    receptive field.

    Arguments:
        grid: Masses of the bins' centres ``(bins,)``, ascending, in daltons.
        peak_width: Full width of a peak at half its height, in daltons.
        peak_distance: Of an isotope pattern, in daltons: 1 of peptides of charge 1.
        threshold: As in `pattern_bins`.
        maps: Feature maps of all residual layers but the last.

    Raises:
        ValueError: as `pattern_bins`; a distance that is not above 0; or bins so wide that peaks
            can't be told apart, so that there is no isotope pattern to see.
    """
    masses = require_grid(grid)
    require_positive(peak_distance=peak_distance)
    width = float((masses[-1] - masses[0]) / (len(masses) - 1))
    per_peak = peak_distance / width
    if per_peak < 2:
        raise ValueError(
            f"bins are {width:g} Da wide on average: peaks {peak_distance:g} Da apart take two "
            "bins at least to be seen, so nothing can be fitted to isotope patterns here"
        )
    largest = _largest_pattern(masses, peak_width, threshold)
    if largest == 0:
        raise ValueError(f"no isotope pattern fits on {masses[0]:g} to {masses[-1]:g} Da")
    first = max(1, int(per_peak) - 1)
    # Two convolutions before the stride and two with it and before, of kernel 3: 9 bins.
    later = max(2, -(-(largest - 9) // (4 * first)))
    field = 9 + 4 * first * later
    last = max(1, field // (3 * first))
    strides = (1, first, *[1] * (later - 1), last)
    filters = BinFilters(strides, (*[maps] * (len(strides) - 1), 1))
    found = receptive_field(filters.convolutions(len(masses), None)[0])
    return Suggestion(filters, found, largest, per_peak)


def _largest_pattern(masses: Floats, peak_width: float, threshold: float) -> int:
    """The bins of the largest isotope pattern that lies on a grid whole; 0 where none does."""
    largest = 0
    for mass in np.linspace(masses[0], masses[-1], 200):
        low, high = pattern_extent(mass, peak_width, threshold)
        if masses[0] <= low and high <= masses[-1]:
            largest = max(largest, pattern_bins(mass, masses, peak_width, threshold))
    return largest
