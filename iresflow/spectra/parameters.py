"""What parameters must be: each is refused by one sentence that names it."""

from numbers import Integral, Real

import numpy as np

__all__ = [
    "require_count",
    "require_finite",
    "require_flag",
    "require_fraction",
    "require_kind",
    "require_not_negative",
    "require_positive",
    "require_seed",
    "require_share",
]


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


def require_finite(**values: object) -> None:
    """Raises a ValueError where one of some named values is no finite number."""
    for name, value in values.items():
        if not np.isfinite(_number(value)):
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def require_share(**values: object) -> None:
    """Raises a ValueError where one of some named values is no number from 0 to less than 1."""
    for name, value in values.items():
        if not 0 <= _number(value) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def require_fraction(**values: object) -> None:
    """Raises a ValueError where one of some named values is no number strictly from 0 to 1."""
    for name, value in values.items():
        if not 0 < _number(value) < 1:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {value!r}")


def require_count(least: int = 1, /, **values: object) -> None:
    """Raises a ValueError where one of some named values is no whole number, or below the least.

    Arguments:
        least: The smallest number that is allowed.
        values: The named values.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")


def require_seed(seed: object) -> None:
    """Raises a ValueError where a seed is no whole number of 0 or more: any other repeats nothing.

    Spectra without noise, and the same spectra with it, are drawn by two calls with one seed.
    """
    require_count(0, seed=seed)


def require_flag(**values: object) -> None:
    """Raises a ValueError where one of some named values is neither true nor false nor a number.

    Numbers are levels, as other estimators have them for ``verbose``.
    """
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_ | Integral):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def require_kind(kind: type | tuple[type, ...], **values: object) -> None:
    """Raises a ValueError where one of some named values is of no class that is allowed."""
    for name, value in values.items():
        if not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
            raise ValueError(f"{name} must be of the class {wanted}, got {value!r}")


def _number(value: object) -> float:
    """A real number as a float, and NaN of anything else."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if number else np.nan  # type: ignore[arg-type]
