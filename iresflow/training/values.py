"""Plain values as people write them, made into what the options of a run are.

YAML and command lines know fewer types than options have, and people write ``4,4`` for a list,
``4`` for a list of one, and ``1e4`` for a count. What can mean one thing only is taken.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import yaml

from iresflow.models.files import one_line

__all__ = ["converted", "described", "load_yaml", "read_text", "read_yaml", "shown"]

SHORT = 80
"""Characters of a value that a message holds."""


def converted(value: object, kind: Any, name: str) -> Any:  # noqa: ANN401
    """A value as the type that an option has.

    Arguments:
        value: What was written: a plain value, or a scalar of NumPy.
        kind: bool, int, float, str, None, a Literal, a tuple of any length, a dict with keys of
            text, or a union of these. Other types are left as they are.
        name: Of the option.

    Raises:
        ValueError: the value means nothing of that type.
    """
    try:
        return _converted(value, kind)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be {described(kind)}, got {shown(value)}") from None


def _converted(value: Any, kind: Any) -> Any:  # noqa: ANN401
    if isinstance(value, np.generic):
        value = value.item()
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _first_of(value, inner)
    if origin is tuple:
        return tuple(_converted(entry, inner[0]) for entry in _entries(value))
    if origin is dict and isinstance(value, Mapping):
        return {_text(key): _converted(entry, inner[1]) for key, entry in value.items()}
    if origin is Literal and isinstance(value, str) and value in inner:
        return value
    plain = {bool: _truth, int: _whole, float: _number, str: _text, NoneType: _nothing}
    if kind in plain:
        return plain[kind](value)
    if origin is None and isinstance(value, kind):
        return value
    raise ValueError


def _first_of(value: object, kinds: tuple[Any, ...]) -> Any:  # noqa: ANN401
    # 1 is a count and 1.0 a fraction: what has one of the types is not made another.
    for kind in sorted(kinds, key=lambda kind: type(value) is not kind):
        try:
            return _converted(value, kind)
        except (ValueError, OverflowError):
            continue
    raise ValueError


def _entries(value: object) -> list[Any]:
    if isinstance(value, str):
        return [part for entry in value.split(",") if (part := entry.strip())]
    if isinstance(value, Mapping | None):
        raise ValueError
    if isinstance(value, list | tuple | np.ndarray):
        return list(value)
    return [value]


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _whole(value: object) -> int:
    """Of 64 bits: no tensor takes a larger one."""
    number = value if isinstance(value, int) else _number(value)
    if isinstance(value, bool) or number != int(number) or not -(2**63) <= number < 2**63:
        raise ValueError
    return int(number)


def _number(value: object) -> float:
    """Finite: no option means anything at infinity that null doesn't. YAML takes 1e4 for text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _text(value: object) -> str:
    """Numbers are names too, of a column, say."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or "\0" in value or not value.isprintable():
        raise ValueError
    return value


def _nothing(value: object) -> None:
    if value is not None:
        raise ValueError


def described(kind: Any) -> str:  # noqa: ANN401
    """A type in words, for a message."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        words = [described(each) for each in inner]
        return " or ".join([", ".join(words[:-1]), words[-1]])
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple:
        return f"a list, each entry {described(inner[0])}"
    if origin is dict:
        return f"a mapping from names, each value {described(inner[1])}"
    plain = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    return "null" if kind is NoneType else plain.get(kind, f"a {getattr(kind, '__name__', kind)}")


def shown(value: object) -> str:
    """A value in a message: of one line, and not too long."""
    words = " ".join(repr(value).split())
    return words if len(words) <= SHORT else f"{words[:SHORT]} ..."


def read_text(text: str, kind: Any) -> object:  # noqa: ANN401
    """The word of a command line that stands for an option of a type, as a plain value."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if str in kinds or get_origin(kind) is Literal:
        return None if text == "null" and NoneType in kinds else text
    try:
        return load_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return text


class _OnceEach(yaml.SafeLoader):
    """Refuses a name that stands twice in a mapping, of which YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        names = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if name.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{name.value!r} stands there twice", problem_mark=name.start_mark
                )
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:  # noqa: ANN401
    """What a text in YAML says, as plain values.

    Raises:
        yaml.YAMLError: it is no YAML, or a name stands twice in a mapping.

    Other errors: those of dates and numbers that are damaged.
    """
    return yaml.load(text, _OnceEach)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file holds none.

    Raises:
        ValueError: it can't be read, in one line.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except (ValueError, OverflowError, TypeError, AttributeError, yaml.YAMLError) as error:
        # Its constructors raise what Python does for the dates and numbers of a damaged file.
        raise ValueError(f"{path} is damaged, or no YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no options, but {shown(values)}")
    return {str(key): value for key, value in values.items()}
