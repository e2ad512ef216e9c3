"""Spectra on one grid, with what is known of each: what readers and the simulator give."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from iresflow.spectra.checks import Floats, require_grid, require_members, require_spectra
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
        ValueError: shapes that don't fit, an unsorted grid, or intensities that are negative or
            not finite.
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
        for field in fields(self)[2:]:
            if (entries := getattr(self, field.name)) is not None:
                object.__setattr__(self, field.name, _entries(entries, field.name, len(values)))

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

    def __getitem__(self, which: NDArray | slice) -> Self:
        """Some of the spectra, by places or a mask ``(spectra,)``."""
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
    masses, intensities = list(masses), list(intensities)
    if len(masses) != len(intensities):
        raise ValueError(
            f"each spectrum has masses and intensities, got {len(masses)} and {len(intensities)}"
        )
    own: list[Floats] = []
    values: list[Floats] = []
    for place, (mass, intensity) in enumerate(zip(masses, intensities, strict=True)):
        try:
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


def _entries(entries: ArrayLike, name: str, spectra: int) -> NDArray:
    if name != "coordinates":
        return require_members(spectra, **{name: entries})[0]
    found = np.asarray(entries)
    if found.shape != (spectra, 3):
        raise ValueError(f"{name} has the shape {found.shape}; {(spectra, 3)} is needed")
    if np.issubdtype(found.dtype, np.floating) and not np.isfinite(found).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return found
