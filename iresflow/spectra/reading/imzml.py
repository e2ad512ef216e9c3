"""Mass spectra from imzML files."""

from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iresflow.errors import DataError
from iresflow.extras import import_extra
from iresflow.spectra.checks import require_grid
from iresflow.spectra.collection import Spectra, gather
from iresflow.spectra.parameters import require_kind
from iresflow.spectra.reading.pair import binary_beside, check_image, encoded_lengths

__all__ = ["read_imzml"]

# The parser takes a whole file for granted, and fails as it happens where it is not.
UNREADABLE = (
    ParseError,
    RuntimeError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
)


def read_imzml(path: str | PathLike[str], grid: ArrayLike | None = None) -> Spectra:
    """The spectra of an imzML file and of the ``.ibd`` file beside it, with their coordinates.

    Arguments:
        path: The ``.imzML`` file, continuous or processed, and not compressed.
        grid: Masses to bring all spectra to; None for those of the file, or where each spectrum
            has its own, for a grid of all (`iresflow.spectra.collection.gather`).

    Returns:
        Intensities in the file's type of float, and ``coordinates``: x, y, z in pixels, as the
        file counts them (from 1), z 1 where it has none.

    Raises:
        DataError: a file of the pair is missing, truncated, damaged or of another pair; it is
            compressed, holds no spectrum, spectra that are not as `gather` needs them, or two at
            one pixel; or numbers that it declares (of spectra, pixels, places and lengths of
            arrays) do not fit what it holds.
        MissingLibraryError: pyimzml is not installed.
        ValueError: the grid is none, or the path.
    """
    require_kind((str, PathLike), path=path)
    grid = None if grid is None else require_grid(grid)
    library = import_extra("pyimzml.ImzMLParser", "spectra")
    file = Path(path)
    try:
        if not file.is_file():
            raise DataError(f"there is no file {file}")
        binary = binary_beside(file)
        encoded = encoded_lengths(file)
        with binary.open("rb") as opened:
            parser = library.ImzMLParser(str(file), ibd_file=opened)
            check_image(file, binary, encoded, parser)
            masses, intensities = _arrays(parser)
            coordinates = np.asarray(parser.coordinates, dtype=np.int64)
    except UNREADABLE as error:
        if isinstance(error, DataError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{file} is truncated or no imzML file ({reason})") from None
    except OSError as error:
        raise DataError(f"{file} could not be read: {error}") from None
    try:
        return gather(masses, intensities, grid, coordinates=coordinates)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None


def _arrays(parser: Any) -> tuple[list[NDArray], list[NDArray]]:  # noqa: ANN401 (has no types)
    """Masses and intensities of all spectra; those of one grid share its array."""
    masses: list[NDArray] = []
    intensities: list[NDArray] = []
    at: dict[tuple[int, int], NDArray] = {}
    for place, where in enumerate(zip(parser.mzOffsets, parser.mzLengths, strict=True)):
        mass, intensity = parser.getspectrum(place)
        masses.append(at.setdefault(where, mass.astype(np.float64)))
        intensities.append(intensity)
    return masses, intensities
