"""What an experiment has computed already, in a file: one that was stopped goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

__all__ = ["Records"]


@final
class Records:
    """Results by name, each a line of a file.

    Arguments:
        path: The file; it need not exist. A last line that was cut off counts for nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                name, result = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._known[name] = result

    def result(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of that name: plain values, computed if the file has none."""
        if name not in self._known:
            result = compute()
            with self._path.open("a") as file:
                file.write(f"\n{json.dumps([name, result])}")  # a new line after one cut off
            self._known[name] = result
        return self._known[name]
