"""What people pass to constructors, as plain values, so that what is saved can be loaded.

NumPy's and torch's scalars and arrays are taken for what they hold; what is none is refused.
"""

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any
from warnings import warn

from iresflow.errors import StorageWarning
from iresflow.logdet import LogDetEstimator, estimator_to_dict

__all__ = ["estimator_spec", "integer", "integers", "number", "slopes", "switch", "widths", "word"]


def integer(name: str, value: object, least: int) -> int:
    """A whole number of at least so much.

    Raises:
        ValueError: it is none.
    """
    try:
        whole = None if isinstance(_item(value), bool) else operator.index(_item(value))
    except TypeError:
        whole = None
    if whole is None or whole < least:
        raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")
    return whole


def integers(name: str, values: object, least: int) -> list[int]:
    """Whole numbers of at least so much.

    Raises:
        ValueError: they are none, or not a sequence.
    """
    if isinstance(values, str) or not isinstance(values, Iterable) or _is_scalar(values):
        raise ValueError(f"{name} must be a sequence of whole numbers, got {values!r}")
    return [integer(f"each of {name}", value, least) for value in values]


def widths(name: str, values: object) -> int | list[int]:
    """One positive whole number, or a sequence of them.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(values, Iterable) and not _is_scalar(values):
        return integers(name, values, 1)
    return integer(name, values, 1)


def number(name: str, value: object) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    item = _item(value)
    if isinstance(item, bool) or not isinstance(item, Real) or not math.isfinite(item):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(item)


def slopes(name: str, values: object) -> tuple[float, float] | None:
    """Two numbers from 0.001 to 1,000, which float32 can hold as they are trained, or None.

    Raises:
        ValueError: it is neither.
    """
    if values is None:
        return None
    found = []
    if isinstance(values, Iterable) and not isinstance(values, str) and not _is_scalar(values):
        found = [number(f"each of {name}", value) for value in values]
    if len(found) != 2 or not all(1e-3 <= value <= 1e3 for value in found):
        raise ValueError(f"{name} must be two numbers from 0.001 to 1000, got {values!r}")
    return found[0], found[1]


def switch(name: str, value: object) -> bool:
    """True or False.

    Raises:
        ValueError: it is neither.
    """
    item = _item(value)
    if not isinstance(item, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return item


def word(name: str, value: object) -> str:
    """A name.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {value!r}")
    return str(value)


def estimator_spec(estimator: LogDetEstimator) -> dict[str, Any] | None:
    """An estimator as plain values, for a model's file; None for one that none can describe.

    Warns:
        StorageWarning: there is no describing it, so the model can't be stored.
    """
    try:
        return estimator_to_dict(estimator)
    except ValueError as error:
        warn(f"this model can't be stored: {error}", StorageWarning, stacklevel=3)
        return None


def _is_scalar(value: object) -> bool:
    return getattr(value, "ndim", None) == 0


def _item(value: Any) -> Any:  # noqa: ANN401 (any scalar)
    """The plain value of a scalar of NumPy or torch, and anything else as it is."""
    return value.item() if _is_scalar(value) else value
