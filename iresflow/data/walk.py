"""Which image files lie below a directory: each real file once, and nothing that could hang."""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from PIL import Image

__all__ = ["FORMATS", "ImageFiles", "find_images"]

_GHOSTSCRIPT = {"EPS"}


def _formats() -> tuple[list[str], set[str], set[str]]:
    """Names of the formats that are read, their extensions, and those that are not read."""
    extensions = Image.registered_extensions()  # also registers the formats
    read = [name for name in Image.OPEN if name not in _GHOSTSCRIPT]
    own = {end for end, name in extensions.items() if name in read}
    return read, own, {end for end, name in extensions.items() if name in _GHOSTSCRIPT}


FORMATS, _READ, _RUN = _formats()


@final
@dataclass
class ImageFiles:
    """What was found below a directory.

    Attributes:
        files: Paths of the images, relative to the directory and sorted.
        passed_over: What has the name of an image or is a directory, and is not read: the path
            and why.
    """

    files: list[Path] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def find_images(root: Path) -> ImageFiles:
    """Finds the files with the name of a format that Pillow reads by itself.

    Names that start with a dot are passed over. Links are followed, and no file is found twice: of
    several paths to a file or directory the one counts that has no link in it, else the first one
    in the order of depth and name. Links to a directory that they are in lead nowhere new.

    Passed over, and named, are what is no regular file (a pipe would be waited for for ever),
    links to nothing, directories that can't be read, and formats that need Ghostscript.
    """
    found, candidates = ImageFiles(), []
    plain, linked, seen = deque([root]), deque[Path](), set[str]()
    while plain or linked:
        folder = plain.popleft() if plain else linked.popleft()
        here = os.path.realpath(folder)
        if here in seen:
            continue
        seen.add(here)
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.passed_over.append(f"{folder.relative_to(root)} ({error.strerror})")
            continue
        for entry in inside:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if not os.path.isdir(path):
                reason = _reason(path)
                if reason is None:
                    real = os.path.realpath(path) if entry.is_symlink() else f"{here}/{entry.name}"
                    candidates.append((entry.is_symlink(), path.relative_to(root), real))
                elif reason:
                    found.passed_over.append(f"{path.relative_to(root).as_posix()} ({reason})")
            elif not entry.is_symlink():
                plain.append(path)
            elif not Path(here).is_relative_to(os.path.realpath(path)):
                linked.append(path)
    real_files: dict[str, Path] = {}
    for _, path, real in sorted(candidates, key=lambda candidate: candidate[0]):
        real_files.setdefault(real, path)
    found.files = sorted(real_files.values(), key=Path.as_posix)
    return found


def _reason(path: Path) -> str | None:
    """Why a file is passed over: None for an image, empty for what has no image's name."""
    extension = path.suffix.lower()
    if extension in _RUN:
        return "this format needs Ghostscript"
    if extension not in _READ:
        return ""
    if path.is_file():
        return None
    return "no regular file" if path.exists() else "a link to nothing"
