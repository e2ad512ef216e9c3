"""Grids of mass bins: how time-of-flight instruments space them, and spectra brought to another.

A grid is the masses of its bins' centres, ascending, in daltons. Its edges are halfway between
neighbouring centres; the outer bins reach as far out as in.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from iresflow.spectra.checks import Floats, require_grid, require_real
from iresflow.spectra.parameters import require_positive

__all__ = ["bin_edges", "common_grid", "equidistant_grid", "resample", "tof_grid"]


def bin_edges(grid: ArrayLike) -> Floats:
    """The edges ``(bins + 1,)`` of a grid's bins, in daltons.

    Raises:
        ValueError: this is no grid.
    """
    centres = require_grid(grid)
    inner = (centres[1:] + centres[:-1]) / 2
    ends = 2 * centres[[0, -1]] - inner[[0, -1]]
    return np.concatenate([ends[:1], inner, ends[1:]])


def tof_grid(low: float, high: float, width: float = 0.163) -> Floats:
    """Bins of equal flight time, whose width in daltons grows with the root of the mass.

    In a time-of-flight instrument the mass is proportional to the square of the flight time.

    Arguments:
        low: Lower edge of the first bin, in daltons.
        high: Upper edge of the last one.
        width: Their mean width; 0.163 Da is that of the thesis (section 7.3.2, figure 7.4).

    Returns:
        Centres, float64 ``(bins,)``.

    Raises:
        ValueError: the masses are not positive and ascending, or hold fewer than two bins.
    """
    bins = _bins_of(low, high, width)
    roots = np.linspace(np.sqrt(low), np.sqrt(high), bins + 1)
    edges = roots**2
    return (edges[1:] + edges[:-1]) / 2


def equidistant_grid(low: float, high: float, width: float = 0.163) -> Floats:
    """Bins of one width, in daltons; otherwise as `tof_grid`."""
    edges = np.linspace(low, high, _bins_of(low, high, width) + 1)
    return (edges[1:] + edges[:-1]) / 2


def _bins_of(low: float, high: float, width: float) -> int:
    require_positive(low=low, high=high, width=width)
    if not low < high:
        raise ValueError(f"the first mass of bins is below the last one, got {low} and {high} Da")
    if (bins := round((high - low) / width)) < 2:
        raise ValueError(f"bins of {width} Da leave {bins} of them from {low} to {high} Da")
    return bins


def common_grid(grids: Sequence[Floats]) -> Floats:
    """A grid for spectra on several ones: where all of them are, as coarse as the coarsest there.

    Raises:
        ValueError: there is no range that all of them have, or too few bins in it.
    """
    low, high = max(grid[0] for grid in grids), min(grid[-1] for grid in grids)
    if low >= high:
        raise ValueError(
            f"the grids don't overlap: one begins at {low:.6g} Da, another ends at {high:.6g} Da"
        )
    cut = [grid[(grid >= low) & (grid <= high)] for grid in grids]
    return require_grid(min(cut, key=len))


def resample(spectra: ArrayLike, grid: ArrayLike, onto: ArrayLike) -> Floats:
    r"""Spectra on another grid: in each new bin the mean of their piecewise linear interpolant.

    The area ``sum(intensity * width)`` of what lies well within the new grid stays, up to the
    trapezoidal rule. Wide new bins average what they cover, narrow ones interpolate.

    Arguments:
        spectra: Intensities a bin, ``(..., bins)``.
        grid: Their masses.
        onto: The new masses, no centre outside of the old bins.

    Returns:
        Float64 ``(..., new bins)``.

    Raises:
        ValueError: a grid is none, the spectra are no numbers or masked, the shapes don't fit, or
            the new grid leaves the old one.
    """
    old, new = require_grid(grid), require_grid(onto)
    values = require_real(spectra=spectra)
    if values.ndim == 0 or values.shape[-1] != len(old):
        raise ValueError(f"spectra of shape {values.shape} on a grid of {len(old)} bins")
    edges = bin_edges(old)
    if new[0] < edges[0] or new[-1] > edges[-1]:
        raise ValueError(
            f"the new grid, {new[0]:.6g} to {new[-1]:.6g} Da, leaves the one of the spectra, "
            f"{edges[0]:.6g} to {edges[-1]:.6g} Da"
        )
    if np.array_equal(old, new):
        return values.copy()
    ends = bin_edges(new)
    return np.diff(_integral(values, old, ends), axis=-1) / np.diff(ends)


def _integral(values: Floats, grid: Floats, upto: Floats) -> Floats:
    """The interpolant's integral from the first mass up to others; constant beyond the ends."""
    steps = np.diff(grid)
    slopes = np.diff(values, axis=-1) / steps
    areas = np.cumsum((values[..., 1:] + values[..., :-1]) / 2 * steps, axis=-1)
    areas = np.concatenate([np.zeros((*areas.shape[:-1], 1)), areas], axis=-1)
    place = np.clip(np.searchsorted(grid, upto, side="right") - 1, 0, len(grid) - 1)
    slopes = np.concatenate([slopes, np.zeros((*slopes.shape[:-1], 1))], axis=-1)
    beyond = upto - grid[place]
    slope = np.where(beyond < 0, 0.0, slopes[..., place])
    return areas[..., place] + values[..., place] * beyond + slope / 2 * beyond**2
