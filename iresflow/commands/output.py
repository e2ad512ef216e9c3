"""Files and directories that have their name only when they are whole."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

__all__ = ["Output"]


class Output(ABC):
    """A file or directory that is written to beside its name, and gets that when it is whole.

    Arguments:
        path: Its name then.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(kind is None)
        if kind is None:
            self.partial.replace(self.path)

    @abstractmethod
    def close(self, whole: bool) -> None:
        """Ends it; one that is whole gets what comes last."""
