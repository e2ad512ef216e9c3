"""What spectra and grids must be: one place, so that every part refuses the same with one word."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

__all__ = [
    "require_count",
    "require_grid",
    "require_members",
    "require_not_negative",
    "require_positive",
    "require_same_grid",
    "require_share",
    "require_spectra",
]

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


def require_spectra(X: ArrayLike, bins: int | None = None, *, by: object = None) -> Floats:
    """Intensities as an array ``(spectra, bins)`` of floats.

    Arguments:
        X: What was passed.
        bins: How many there must be; None for any number.
        by: The estimator that asks.

    Raises:
        ValueError: not two dimensions, no spectra, no bins, another number of bins, NaN, infinity,
            or an intensity below 0.
    """
    spectra: Floats = check_array(X, dtype=(np.float64, np.float32), input_name="X")
    if bins is not None and spectra.shape[1] != bins:
        raise ValueError(
            f"X has {spectra.shape[1]} features, but {type(by).__name__} is expecting {bins} "
            "features as input: spectra on the grid that it was fitted on"
        )
    lowest = spectra.min()
    if lowest < 0:
        row = int(np.argmin(spectra.min(1)))
        raise ValueError(
            f"Negative values in data passed to X: intensities are 0 or more, got {lowest:g} "
            f"in spectrum {row}"
        )
    return spectra


def require_grid(grid: ArrayLike, bins: int | None = None) -> Floats:
    """The masses of the bins' centres ``(bins,)`` in daltons, as floats of 64 bits.

    Arguments:
        grid: What was passed.
        bins: How many there must be; None for any number.

    Raises:
        ValueError: not one dimension, less than two masses, another number than ``bins``, NaN, a
            mass of 0 or less, or masses that don't rise strictly.
    """
    masses = np.asarray(grid, dtype=np.float64)
    if masses.ndim != 1 or len(masses) < 2:
        raise ValueError(f"a grid has two or more masses (bins,), got shape {masses.shape}")
    if bins is not None and len(masses) != bins:
        raise ValueError(f"the grid has {len(masses)} masses, and the spectra {bins} bins")
    if not np.isfinite(masses).all() or masses[0] <= 0:
        raise ValueError(
            f"masses are finite and above 0, got {masses.min():g} to {masses.max():g}"
        )
    steps = np.diff(masses)
    if (steps <= 0).any():
        place = int(np.argmax(steps <= 0))
        what = "twice" if steps[place] == 0 else "unsorted"
        raise ValueError(
            f"masses rise strictly, got {what}: {masses[place]:g}, {masses[place + 1]:g} at "
            f"{place} and {place + 1}"
        )
    return masses


def require_same_grid(masses: Floats | None, fitted: Floats | None) -> None:
    """Raises a ValueError where a grid is not the one of fitting."""
    if masses is None or fitted is None:
        if (masses is None) != (fitted is None):
            said = "with a grid, and now there is none"
            if fitted is None:
                said = "without a grid, and now there is one"
            raise ValueError(f"fitted {said}: Spectra bring theirs along, and arrays don't")
        return
    if not np.array_equal(masses, fitted):
        raise ValueError(
            f"fitted on a grid of {len(fitted)} masses, {fitted[0]:g} to {fitted[-1]:g}, and now "
            f"the grid is another one, of {len(masses)}, {masses[0]:g} to {masses[-1]:g}: bring "
            "the spectra to the grid of fitting, by Spectra.on or Resampling"
        )


def require_positive(**values: object) -> None:
    """Raises a ValueError where one of some named values is no finite number above 0."""
    for name, value in values.items():
        if not 0 < _number(value) < np.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def require_not_negative(**values: object) -> None:
    """Raises a ValueError where one of some named values is no finite number of 0 or more."""
    for name, value in values.items():
        if not 0 <= _number(value) < np.inf:
            raise ValueError(f"{name} must be a finite number of 0 or more, got {value!r}")


def require_share(**values: object) -> None:
    """Raises a ValueError where one of some named values is no number from 0 to less than 1."""
    for name, value in values.items():
        if not 0 <= _number(value) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def _number(value: object) -> float:
    """A real number as a float, and NaN of anything else."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if number else np.nan  # type: ignore[arg-type]


def require_count(**values: object) -> None:
    """Raises a ValueError where one of some named values is no whole number of 1 or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")


def require_members(spectra: int | None = None, **values: ArrayLike) -> list[NDArray]:
    """What each spectrum belongs to, by arrays ``(spectra,)`` of names or numbers.

    Arguments:
        spectra: How many there are; None for as many as the first array says.
        values: Such as labels or cores.

    Raises:
        ValueError: one has another shape, or something in it is no name: None, NaN, infinity, or
            words beside numbers.
    """
    found = []
    for name, value in values.items():
        members = np.asarray(value)
        spectra = len(members) if spectra is None and members.ndim == 1 else spectra
        if members.shape != (spectra,):
            wanted = "one for each spectrum" if spectra is None else f"({spectra},) is needed"
            raise ValueError(f"{name} has the shape {members.shape}; {wanted}")
        if np.issubdtype(members.dtype, np.inexact) and not np.isfinite(members).all():
            raise ValueError(f"{name} holds NaN or infinity")
        if members.dtype == object and not _of_one_kind(members):
            raise ValueError(f"{name} holds None or values of several kinds, not words or numbers")
        found.append(members)
    return found


def _of_one_kind(members: NDArray) -> bool:
    return any(all(isinstance(member, kind) for member in members) for kind in (str, Integral))
