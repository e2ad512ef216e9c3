"""Mass spectra from text of two columns."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from numpy.typing import ArrayLike

from iresflow.errors import DataError
from iresflow.spectra.checks import require_grid
from iresflow.spectra.collection import Spectra, gather
from iresflow.spectra.parameters import require_kind

__all__ = ["read_text"]

File = str | PathLike[str]


def read_text(paths: File | Iterable[File], grid: ArrayLike | None = None) -> Spectra:
    """Spectra in text files, one in each: a line is a mass and an intensity.

    Numbers are separated by white space, commas or semicolons. Lines that are empty or begin with
    ``#`` are passed over, and so is a first line of two words, the names of the columns.

    Arguments:
        paths: The files, or one.
        grid: Masses to bring all spectra to; None as for `read_imzml`.

    Raises:
        DataError: a file is missing or is no such text, by line, or spectra are not as
            `iresflow.spectra.collection.gather` needs them.
        ValueError: no file, or the grid is none.
    """
    given = [paths] if isinstance(paths, str | PathLike) else paths
    require_kind(Iterable, paths=given)
    files = [Path(path) for path in given]
    if not files:
        raise ValueError("there is no file to read")
    grid = None if grid is None else require_grid(grid)
    columns = [_columns(file) for file in files]
    masses, intensities = zip(*columns, strict=True)
    names = [str(file) for file in files]
    try:
        return gather(masses, intensities, grid, names=names)
    except ValueError as error:
        raise DataError(str(error)) from None


def _columns(file: Path) -> tuple[list[float], list[float]]:
    """The two columns of a text file."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} could not be read: {error}") from None
    rows: list[tuple[float, ...]] = []
    titled = False
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").replace(";", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            values = tuple(float(word) for word in words)
        except ValueError:
            values = ()
        if len(values) == 2:
            rows.append(values)
        elif values or rows or titled:
            raise DataError(f"{file}, line {number}: {line!r} is not a mass and an intensity")
        titled = True
    if not rows:
        raise DataError(f"{file} holds no line of a mass and an intensity")
    mass, intensity = zip(*rows, strict=True)
    return list(mass), list(intensity)
