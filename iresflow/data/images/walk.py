"""Which image files lie below a directory: each real file once, and nothing that could hang."""

import os
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import final

from PIL import Image

__all__ = ["ImageFiles", "find_images", "formats"]

_GHOSTSCRIPT = {"EPS"}


@cache
def formats() -> tuple[str, ...]:
    """Names of the formats that Pillow reads by itself; the first call loads what reads them."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _GHOSTSCRIPT)


@final
@dataclass
class ImageFiles:
    """What was found below a directory.

    Attributes:
        files: Paths of the images, relative to the directory, with slashes, and sorted.
        passed_over: What has the name of an image or is a directory, and is not read: the path
            and why.
    """

    files: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def find_images(root: Path) -> ImageFiles:
    """Finds the files with the name of a format that Pillow reads by itself.

    Names that start with a dot are passed over. Links are followed, and no file is found twice: of
    several paths to a file or directory the one counts that has no link in it, else the first one
    in the order of depth and name. Links to a directory that they are in lead nowhere new.

    Passed over, and named, are what is no regular file (a pipe would be waited for for ever),
    links to nothing, directories that can't be read, and formats that need Ghostscript.
    """
    found = ImageFiles()
    own: list[str] = []
    links: dict[str, str] = {}
    directories = set[str]()
    # Each directory by the path below the root that leads to it, "" or one that ends in a slash.
    plain, linked = deque([""]), deque[str]()
    while plain or linked:
        folder = plain.popleft() if plain else linked.popleft()
        here = os.path.realpath(root / folder)
        if here in directories:
            continue
        directories.add(here)
        try:
            with os.scandir(root / folder) as entries:
                inside = sorted((entry.name, entry.is_symlink()) for entry in entries)
        except OSError as error:
            found.passed_over.append(f"{folder.rstrip('/')} ({error.strerror})")
            continue
        for name, is_link in inside:
            path, below = f"{folder}{name}", root / folder / name
            if name.startswith("."):
                continue
            if os.path.isdir(below):
                if not is_link:
                    plain.append(f"{path}/")
                elif not Path(here).is_relative_to(os.path.realpath(below)):
                    linked.append(f"{path}/")
            elif reason := _reason(below):
                found.passed_over.append(f"{path} ({reason})")
            elif reason is None and is_link:
                links[path] = os.path.realpath(below)
            elif reason is None:
                own.append(path)
    if links:
        # A real file is known by its one directory, so only links can lead to it again.
        real = {os.path.realpath(root / path) for path in own}
        for path, target in links.items():
            if target not in real:
                real.add(target)
                own.append(path)
    found.files = sorted(own)
    return found


def _reason(path: Path) -> str | None:
    """Why a file is passed over: None for an image, empty for what has no image's name."""
    extension = path.suffix.lower()
    readable = formats()
    name = Image.EXTENSION.get(extension)
    if name in _GHOSTSCRIPT:
        return "this format needs Ghostscript"
    if name not in readable:
        return ""
    if os.path.isfile(path):
        return None
    return "no regular file" if os.path.exists(path) else "a link to nothing"
