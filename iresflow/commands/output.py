"""Files and directories that have their name only when they are whole; none that is read."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Self

__all__ = ["Output", "make_directory", "require_apart", "require_outside"]


def make_directory(option: str, path: Path) -> None:
    """Makes a directory that an option needs, where it is not there.

    Raises:
        ValueError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{option}: no directory {path} can be made ({error.strerror})") from None


def require_apart(option: str, out: Path, read: Iterable[Path]) -> None:
    """Refuses to write over what is read.

    Arguments:
        option: That names the file.
        out: The file.
        read: Files and directories that hold data.

    Raises:
        ValueError: the file is one of them, perhaps by another name or through a link.
    """
    for path in read:
        if out.resolve() == path.resolve() or (
            out.exists() and path.exists() and out.samefile(path)
        ):
            raise ValueError(
                f"{option} {out} would overwrite the data that are read from {path}: name "
                "another file"
            )


def require_outside(option: str, out: Path, read: Iterable[Path]) -> None:
    """Refuses pictures in a directory whose images are data: they would be read with these.

    Arguments:
        option: That names the place.
        out: A picture, or a directory of pictures.
        read: Files and directories that hold data.

    Raises:
        ValueError: the place is in one of the directories.
    """
    for path in read:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise ValueError(
                f"{option} {out} lies in {path}, whose images are read as data: name a place "
                "elsewhere"
            )


class Output(ABC):
    """A file or directory that is written to beside its name, and gets that when it is whole.

    Arguments:
        path: Its name then.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        failure = error
        try:
            self.close(kind is None)
            if kind is None:
                self.partial.replace(self.path)
        except OSError as late:
            failure = error or late
        if isinstance(failure, OSError):  # such as a full disk
            failure.add_note(f"({self.path} could not be written)")
            self.discard()
        if failure is not None and failure is not error:
            raise failure

    @abstractmethod
    def close(self, whole: bool) -> None:
        """Ends it; one that is whole gets what comes last."""

    def discard(self) -> None:
        """Does away with what could not be written to its end."""
        self.partial.unlink(missing_ok=True)
