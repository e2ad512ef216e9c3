"""Tables and figures in a directory."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]


@final
class Report:
    """Tables and figures in a directory.

    ``results.json`` holds the tables as lists of objects and the numbers, with null for NaN and
    infinities; each table is also a CSV file, and all of them are in ``results.md``, as they are.
    What is written again under a name takes the place of what was there.

    Arguments:
        path: An existing directory.
        title: Of the markdown page.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self._title = title
        self._results: dict[str, Any] = {}
        self._page: dict[str, list[str]] = {}

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
        """Writes a table, one mapping of column to value a row.

        Raises:
            ValueError: no row, or rows with different columns.
        """
        if not rows or any(row.keys() != rows[0].keys() for row in rows):
            raise ValueError(f"table {name!r} needs at least one row, and all of equal columns")
        columns = list(rows[0])
        with (self.path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in rows]
        self._add(name, [dict(row) for row in rows], [caption, *lines] if caption else lines)

    def numbers(self, name: str, values: Mapping[str, Any], caption: str = "") -> None:
        """Writes named values."""
        lines = [f"- {key}: {_cell(value)}" for key, value in values.items()]
        self._add(name, dict(values), [caption, "", *lines] if caption else lines)

    def figure(self, name: str, figure: "Figure", caption: str = "") -> Path:
        """Writes a figure as PNG."""
        file = self.path / f"{name}.png"
        figure.savefig(file, dpi=120)
        self._page[file.name] = [f"![{caption or name}]({file.name})", ""]
        self._write()
        return file

    def _add(self, name: str, values: object, lines: list[str]) -> None:
        self._results[name] = values
        if lines and not lines[0].startswith(("|", "-")):
            lines = [lines[0], "", *lines[1:]]
        self._page[name] = [f"## {name}", "", *lines, ""]
        self._write()

    def _write(self) -> None:
        # At once, so that an experiment that is stopped leaves what it has found.
        text = json.dumps(_strict(self._results), indent=1, allow_nan=False)
        (self.path / "results.json").write_text(text + "\n")
        page = "\n".join([f"# {self._title}", "", *chain(*self._page.values())])
        (self.path / "results.md").write_text(page)


def _strict(value: object) -> object:
    """What JSON can hold, which knows no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)  # type: ignore[arg-type]  # of numpy or torch
    return number if math.isfinite(number) else None


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
