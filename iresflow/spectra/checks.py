"""What spectra and grids must be: one place, so that every part refuses the same with one word."""

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

__all__ = [
    "require_grid",
    "require_members",
    "require_pixels",
    "require_real",
    "require_same_grid",
    "require_spectra",
    "require_unmasked",
]

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


def require_unmasked(**values: object) -> None:
    """Raises a ValueError where one of some named arrays hides entries by a mask.

    Functions of NumPy pass over the mask, and so bring what it hides back.
    """
    for name, value in values.items():
        if _hides(value):
            raise ValueError(
                f"{name} has masked entries, whose values are not known: leave these spectra or "
                "bins away, or fill them"
            )


def require_spectra(X: ArrayLike, bins: int | None = None, *, by: object = None) -> Floats:
    """Intensities as an array ``(spectra, bins)`` of floats.

    Arguments:
        X: What was passed.
        bins: How many there must be; None for any number.
        by: The estimator that asks.

    Raises:
        ValueError: not two dimensions, no spectra, no bins, another number of bins, NaN, infinity,
            masked entries, or an intensity below 0.
    """
    require_unmasked(X=X)
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


def require_real(**values: ArrayLike) -> Floats:
    """One named array of real numbers, as floats of 64 bits.

    Raises:
        ValueError: it has masked entries, or holds something else, such as words, complex numbers
            or rows of different lengths.
    """
    ((name, value),) = values.items()
    require_unmasked(**values)
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "iufO":
            raise TypeError(f"values of type {found.dtype}")
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds no real numbers: {error}") from None


def require_grid(grid: ArrayLike, bins: int | None = None) -> Floats:
    """The masses of the bins' centres ``(bins,)`` in daltons, as floats of 64 bits.

    Arguments:
        grid: What was passed.
        bins: How many there must be; None for any number.

    Raises:
        ValueError: not one dimension, less than two masses, another number than ``bins``, NaN,
            masked entries, a mass of 0 or less, masses that don't rise strictly, or what is no
            number at all.
    """
    masses = require_real(grid=grid)
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


def require_members(spectra: int | None = None, **values: ArrayLike) -> list[NDArray]:
    """What each spectrum belongs to, by arrays ``(spectra,)`` of names or numbers.

    Arguments:
        spectra: How many there are; None for as many as the first array says.
        values: Such as labels or cores.

    Raises:
        ValueError: one has another shape, or something in it is no name: a masked entry, None,
            NaN, infinity, NaT, or words beside numbers.
    """
    found = []
    for name, value in values.items():
        require_unmasked(**{name: value})
        members = np.asarray(value)
        spectra = len(members) if spectra is None and members.ndim == 1 else spectra
        if members.shape != (spectra,):
            wanted = "one for each spectrum" if spectra is None else f"({spectra},) is needed"
            raise ValueError(f"{name} has the shape {members.shape}; {wanted}")
        if members.dtype.kind in "mM" and np.isnat(members).any():
            raise ValueError(f"{name} holds NaT, which is no date")
        if np.issubdtype(members.dtype, np.inexact) and not np.isfinite(members).all():
            raise ValueError(f"{name} holds NaN or infinity")
        if members.dtype == object and not _of_one_kind(members):
            raise ValueError(f"{name} holds None or values of several kinds, not words or numbers")
        found.append(members)
    return found


def require_pixels(coordinates: ArrayLike, spectra: int) -> NDArray[np.int64]:
    """Places of spots ``(spectra, 3)`` in whole pixels.

    Raises:
        ValueError: another shape, masked entries, NaN, or what is no whole number.
    """
    found = require_real(coordinates=coordinates)
    if found.shape != (spectra, 3):
        raise ValueError(f"coordinates has the shape {found.shape}; {(spectra, 3)} is needed")
    if not np.isfinite(found).all():
        raise ValueError("coordinates holds NaN or infinity")
    if (found != np.rint(found)).any():
        raise ValueError("coordinates are whole numbers of pixels, got fractions")
    return found.astype(np.int64)


def _hides(value: object) -> bool:
    """Whether a masked array, or one in a list, has masked entries."""
    if isinstance(value, list | tuple):
        return any(_hides(part) for part in value if not isinstance(part, float | int | str))
    return bool(np.ma.is_masked(value))


def _of_one_kind(members: NDArray) -> bool:
    return any(all(isinstance(member, kind) for member in members) for kind in (str, Integral))
