"""Reading options: from files first, in their order, then from the command line.

The command line overrides the files, wherever ``--config`` stands in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from iresflow.commands.reading.arguments import fail, nearest
from iresflow.training.sections import is_section
from iresflow.training.values import load_yaml, read_text, read_yaml

__all__ = ["Given", "merged", "read_options"]


@final
@dataclass(frozen=True)
class Given:
    """What was asked for.

    Attributes:
        values: The options that were set, nested as in a file.
        typed: Those of the command line alone.
        files: The configuration files, in order.
    """

    values: dict[str, Any]
    typed: dict[str, Any]
    files: tuple[Path, ...]


def read_options(
    arguments: Sequence[str], kinds: Mapping[str, Any], find: Callable[[str], Path]
) -> Given:
    """The options of a command line and of the files that it names, not converted to their types.

    Unknown names end the process, with the nearest one.

    Arguments:
        arguments: The words after the verb.
        kinds: The type of each option by its full name, see `iresflow.training.option_kinds`.
        find: The file that a ``--config`` stands for.

    Raises:
        ValueError: a file can't be read, or holds no options.
    """
    files, given = [], []
    for name, text in _pairs(arguments, kinds):
        if name == "config":
            files.append(find(text))
        else:
            given.append((name, text))
    values: dict[str, Any] = {}
    typed: dict[str, Any] = {}
    for file in files:
        content = read_yaml(file)
        _require_known(content, kinds, f" in {file}")
        values = merged(values, content)
    for name, text in given:
        value = _section(text) if is_section(kinds[name]) else read_text(text, kinds[name])
        section, _, option = name.rpartition(".")
        content = {section: {option: value}} if section else {name: value}
        _require_known(content, kinds)
        typed = merged(typed, content)
    return Given(merged(values, typed), typed, tuple(files))


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Options of two origins, section by section: those ``above`` count."""
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = {**old, **value}
        result[name] = value
    return result


def _pairs(arguments: Sequence[str], kinds: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each option with its value."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            fail(f"{word!r} belongs to no option; write lists as 4,4 or [4, 4]", code=2)
        name, assigned, text = word[2:].partition("=")
        if name != "config" and name not in kinds:
            fail(f"unknown option {name!r}: {nearest(name, kinds)}", code=2)
        if not assigned and words and not words[0].startswith("--"):
            text = words.pop(0)
        elif not assigned and kinds.get(name) is bool:
            text = "true"
        elif not assigned:
            fail(f"--{name} needs a value", code=2)
        yield name, text


def _section(text: str) -> object:
    """A whole section, in YAML or in a file."""
    path = Path(text)
    try:
        return read_yaml(path) if path.is_file() else load_yaml(text)
    except (OSError, RecursionError, yaml.YAMLError):
        return text


def _require_known(values: Mapping[str, Any], kinds: Mapping[str, Any], where: str = "") -> None:
    for name, value in values.items():
        inner = value if isinstance(value, Mapping) and is_section(kinds.get(name)) else {}
        for full in (name, *(f"{name}.{option}" for option in inner)):
            if full not in kinds:
                fail(f"unknown option {full!r}{where}: {nearest(full, kinds)}", code=2)
