"""Sections of options: dataclasses that check themselves, built from plain values."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from inspect import signature
from typing import Any, TypeVar, get_type_hints

from iresflow.training.values import converted, shown

__all__ = ["Section", "is_section", "option_kinds", "section_of", "taken_by"]


@dataclass(kw_only=True)
class Section:
    """A dataclass of options, which are converted to the types they have, and then checked.

    A field may be a section in turn.
    """

    def __post_init__(self) -> None:
        for name, kind in _kinds_of(type(self)).items():
            setattr(self, name, converted(getattr(self, name), kind, name))
        self._check()

    def _check(self) -> None:
        """Raises a ValueError that begins with the name of an option that is out of range."""

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a YAML file."""
        return _plain(asdict(self))


S = TypeVar("S", bound=Section)


# The type checker doubts that classes of dataclasses can be hashed.
_kinds_of: Callable[[type[Any]], dict[str, Any]] = cache(get_type_hints)  # type: ignore[assignment]


def option_kinds(section: type[Section], prefix: str = "") -> dict[str, Any]:
    """The type of each option in a section and of each inner section, by its full name."""
    kinds: dict[str, Any] = {}
    for name, kind in _kinds_of(section).items():
        kinds[prefix + name] = kind
        if is_section(kind):
            kinds |= option_kinds(kind, f"{prefix}{name}.")
    return kinds


def section_of(kind: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """The section that plain values describe, as they stand in a YAML file.

    Raises:
        ValueError: a value out of range or of another type, or an unknown name; the message
            begins with the option's full name.
    """
    kinds, fields = _kinds_of(kind), {}
    for name, value in values.items():
        full = f"{prefix}{name}"
        if name not in kinds:
            raise ValueError(f"{full} is no option")
        if not is_section(kinds[name]):
            fields[name] = value
        elif isinstance(value, Mapping | None):  # all of its lines may be comments
            fields[name] = section_of(kinds[name], value or {}, f"{full}.")
        else:
            raise ValueError(f"{full} holds options of its own, got {shown(value)}")
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def taken_by(kind: Callable[..., object], section: Section) -> dict[str, Any]:
    """The options of a section that a function or class takes as arguments of the same name."""
    names = signature(kind).parameters
    return {name: getattr(section, name) for name in names if hasattr(section, name)}


def is_section(kind: object) -> bool:
    """Whether a type of an option is a section."""
    return isinstance(kind, type) and issubclass(kind, Section)
