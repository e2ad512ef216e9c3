"""Spectra on one grid, with what is known of each: what readers and the simulator give."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from iresflow.spectra.checks import (
    Floats,
    require_grid,
    require_members,
    require_pixels,
    require_spectra,
    require_unmasked,
)
from iresflow.spectra.grids import common_grid, resample

__all__ = ["Spectra", "gather", "grid_of"]


@final
@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra on one grid of mass bins; entry i of each array belongs to spectrum i.

    The estimators and transformers of this room take them in the place of ``X``, remember the
    grid that they were fitted on, and refuse spectra on another one. For all others, such as
    scikit-learn's own, they are the array ``X``.

    Arguments:
        X: Intensities ``(spectra, bins)``, floating, finite and not negative.
        grid: Masses of the bins' centres ``(bins,)``, ascending, in daltons.
        labels: Classes ``(spectra,)``, numbers or words; None where they are not known.
        cores: The tissue core of each spot ``(spectra,)``.
        patients: The patient of each.
        arrays: The tissue microarray, or another measurement, that each was part of.
        coordinates: Places of the spots ``(spectra, 3)``, integer: x, y, z in pixels.

    Raises:
        ValueError: shapes that don't fit, an unsorted grid, intensities that are negative or not
            finite, or entries that a mask hides.
    """

    X: Floats
    grid: Floats
    labels: NDArray | None = None
    cores: NDArray | None = None
    patients: NDArray | None = None
    arrays: NDArray | None = None
    coordinates: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        values = require_spectra(self.X)
        object.__setattr__(self, "grid", require_grid(self.grid, values.shape[1]))
        object.__setattr__(self, "X", values)
        if self.coordinates is not None:
            object.__setattr__(self, "coordinates", require_pixels(self.coordinates, len(values)))
        for name in ("labels", "cores", "patients", "arrays"):
            if (entries := getattr(self, name)) is not None:
                (members,) = require_members(len(values), **{name: entries})
                object.__setattr__(self, name, members)

    def __len__(self) -> int:
        return len(self.X)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of spectra and of bins."""
        spectra, bins = self.X.shape
        return spectra, bins

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Floats:
        """The intensities, for functions that take arrays."""
        if copy is None:
            return np.asarray(self.X, dtype)
        return np.array(self.X, dtype, copy=copy)

    def __getitem__(self, which: ArrayLike | slice) -> Self:
        """Some of the spectra, by a slice, by places ``(some,)`` or a mask ``(spectra,)``.

        Raises:
            ValueError: a mask of another length, places that there are not, or none at all.
        """
        if isinstance(which, tuple) and len(which) == 2 and which[1] is Ellipsis:
            which = which[0]  # as scikit-learn asks for rows
        which = which if isinstance(which, slice) else _places(which, len(self))
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grid"}
        return replace(
            self, **{name: part[which] for name, part in parts.items() if part is not None}
        )

    def on(self, grid: ArrayLike) -> Self:
        """The same spectra on another grid (`iresflow.spectra.grids.resample`).

        Raises:
            ValueError: it is no grid, or leaves that of the spectra.
        """
        values = resample(self.X, self.grid, grid).astype(self.X.dtype)
        return replace(self, X=values, grid=require_grid(grid))


def gather(
    masses: Iterable[ArrayLike],
    intensities: Iterable[ArrayLike],
    grid: ArrayLike | None = None,
    *,
    names: Sequence[str] = (),
    **known: Any,  # noqa: ANN401 (of `Spectra`)
) -> Spectra:
    """Spectra that may each have masses of their own, brought to one grid.

    Arguments:
        masses: Of each spectrum, ``(points,)``, ascending, in daltons.
        intensities: Of each, ``(points,)``.
        grid: The grid to bring them to; None for that of all, or where they differ for the
            coarsest of them, cut to the range that all of them have.
        names: What errors call the spectra; none for their numbers from 0.
        known: ``labels``, ``cores``, ``patients``, ``arrays``, ``coordinates`` of `Spectra`.

    Raises:
        ValueError: no spectrum, one that is empty or has another number of masses than of
            intensities, masses that are unsorted or occur twice, intensities that are negative
            or not finite, or grids that don't overlap.
    """
    if not (isinstance(masses, Iterable) and isinstance(intensities, Iterable)):
        raise ValueError("masses and intensities are sequences of arrays, one for each spectrum")
    masses, intensities = list(masses), list(intensities)
    if len(masses) != len(intensities):
        raise ValueError(
            f"each spectrum has masses and intensities, got {len(masses)} and {len(intensities)}"
        )
    if names and len(names) != len(masses):
        raise ValueError(f"{len(masses)} spectra have {len(names)} names")
    own: list[Floats] = []
    values: list[Floats] = []
    for place, (mass, intensity) in enumerate(zip(masses, intensities, strict=True)):
        try:
            require_unmasked(intensities=intensity)
            values.append(require_spectra(np.asarray(intensity)[None])[0])
            own.append(require_grid(mass, len(values[-1])))
        except ValueError as error:
            name = names[place] if names else f"spectrum {place}"
            raise ValueError(f"{name}: {error}") from None
    if not own:
        raise ValueError("there is no spectrum")
    target = common_grid(own) if grid is None else require_grid(grid)
    rows = [
        heights
        if mass is target or np.array_equal(mass, target)
        else resample(heights, mass, target).astype(heights.dtype)
        for mass, heights in zip(own, values, strict=True)
    ]
    return Spectra(np.stack(rows), target, **known)


def grid_of(X: object, named: ArrayLike | None = None, bins: int | None = None) -> Floats | None:
    """The masses that spectra bring along, else those that are named; None where there are none.

    Arguments:
        X: `Spectra`, or an array, which has no masses.
        named: Masses of the bins ``(bins,)`` in daltons, or None.
        bins: How many there must be of those; None for any number.

    Raises:
        ValueError: the masses that are named are no grid, or not that of the spectra.
    """
    known = None if named is None else require_grid(named, bins)
    if not isinstance(X, Spectra):
        return known
    if known is not None and not np.array_equal(known, X.grid):
        raise ValueError(
            f"the spectra are on a grid of {len(X.grid)} masses, {X.grid[0]:g} to "
            f"{X.grid[-1]:g}, and grid= names another one, of {len(known)}, {known[0]:g} to "
            f"{known[-1]:g}"
        )
    return X.grid


def _places(which: ArrayLike, spectra: int) -> NDArray:
    """Places of spectra, from places or a mask; those below 0 count from the end."""
    require_unmasked(which=which)
    found = np.asarray(which)
    if found.ndim != 1 or isinstance(which, tuple):
        raise ValueError(f"spectra are chosen by an array of one dimension, got {which!r}")
    if found.dtype == bool:
        if len(found) != spectra:
            raise ValueError(f"the mask has {len(found)} entries, and there are {spectra} spectra")
        return np.flatnonzero(found)
    if found.dtype.kind not in "iu":
        raise ValueError(f"spectra are chosen by whole numbers or a mask, got {which!r}")
    if beyond := [int(place) for place in found if not -spectra <= place < spectra]:
        raise ValueError(f"there is no spectrum {beyond[0]}: there are {spectra}")
    return found
