"""The two files of an imzML image: whether they are a pair, and hold what they declare."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from xml.etree.ElementTree import Element, iterparse

from iresflow.errors import DataError, few

__all__ = ["binary_beside", "check_image", "encoded_lengths"]

XML = "{http://psi.hupo.org/ms/mzml}"
UUID = "universally unique identifier"
DIGESTS = {"ibd SHA-1": "sha1", "ibd MD5": "md5"}
KINDS = {"masses": "MS:1000514", "intensities": "MS:1000515"}
HEAD = 16
"""Bytes of the binary file before its first array, which are its UUID."""


def binary_beside(file: Path) -> Path:
    """The ``.ibd`` file of an imzML file, whatever the case of its ending.

    Raises:
        DataError: there is none, or there are several.
    """
    beside = [f for f in file.parent.iterdir() if f.stem == file.stem]
    found = [f for f in beside if f.suffix.lower() == ".ibd"]
    if len(found) != 1:
        raise DataError(
            f"{file} needs one file {file.stem}.ibd beside it, which holds its intensities; "
            f"there {'is none' if not found else 'are ' + few([f.name for f in found])}"
        )
    return found[0]


def encoded_lengths(file: Path) -> list[dict[str, int]]:
    """For each spectrum, how many bytes the file says that its arrays take.

    They are named by the group of parameters that an array refers to. An array is left out where
    the file does not say.

    Raises:
        DataError: there is no spectrum, or another number of them than the list declares; or one
            has not one array of masses and one of intensities.
        ParseError: this is no whole XML file.
        ValueError: a number is none.
    """
    found: list[dict[str, int]] = []
    groups: dict[str, set[str | None]] = {}
    declared = None
    with file.open("rb") as opened:
        for event, element in iterparse(opened, ("start", "end")):
            if element.tag == XML + "spectrumList" and event == "start":
                declared = element.get("count")
            elif element.tag == XML + "referenceableParamGroup" and event == "end":
                accessions = {p.get("accession") for p in element.iter(XML + "cvParam")}
                groups[element.get("id", "")] = accessions
            elif element.tag == XML + "spectrum" and event == "end":
                _check_kinds(file, len(found), element, groups)
                found.append(dict(_encoded(element)))
                element.clear()  # or the whole tree would stay in memory
    if declared is not None and int(declared) != len(found):
        raise DataError(f"{file} declares {declared} spectra, and holds {len(found)}")
    if not found:
        raise DataError(f"{file} holds no spectrum")
    return found


def _check_kinds(
    file: Path, place: int, spectrum: Element, groups: dict[str, set[str | None]]
) -> None:
    """That a spectrum has one array of each kind, by the groups that its arrays refer to."""
    arrays = [
        {reference.get("ref", "") for reference in array.iter(XML + "referenceableParamGroupRef")}
        for array in spectrum.iter(XML + "binaryDataArray")
    ]
    for what, accession in KINDS.items():
        count = sum(any(accession in groups.get(r, ()) for r in refs) for refs in arrays)
        if count != 1:
            raise DataError(
                f"{file}: spectrum {place} has {count} arrays whose group of parameters says that "
                f"they are {what}; one is needed"
            )


def _encoded(spectrum: Element) -> Iterator[tuple[str, int]]:
    for array in spectrum.iter(XML + "binaryDataArray"):
        length = array.find(f"{XML}cvParam[@accession='IMS:1000104']")
        for group in array.findall(XML + "referenceableParamGroupRef"):
            if length is not None:
                yield group.get("ref", ""), int(length.get("value", ""))


def check_image(
    file: Path,
    binary: Path,
    encoded: list[dict[str, int]],
    parser: Any,  # noqa: ANN401 (has no types)
) -> None:
    """Whether what the XML declares is what there is, and can be read.

    Arguments:
        file: The XML file.
        binary: The one beside it.
        encoded: What `encoded_lengths` found.
        parser: Of pyimzml, on the two.

    Raises:
        DataError: the files are no pair; numbers are compressed or of no known type; arrays are
            where none can be, take other bytes than they should, or share some; or there are two
            spectra at one pixel, or more pixels than there should be.
    """
    _check_groups(file, parser)
    _check_pair(file, binary, parser)
    _check_pixels(file, parser)
    size = binary.stat().st_size
    taken: dict[tuple[int, int, str], _Array] = {}
    for array in _arrays(parser):
        _check_array(file, binary, size, array, encoded[array.spectrum].get(array.group))
        # Spectra may share their masses, but no intensities.
        whose = "all" if array.what == "masses" else str(array.spectrum)
        if array.length:
            taken.setdefault((array.first, array.end, whose), array)
    ordered = sorted(taken.values(), key=lambda array: (array.first, array.end))
    for before, after in zip(ordered, ordered[1:], strict=False):
        if after.first < before.end:
            raise DataError(
                f"{file}: {before} and {after} share bytes of {binary.name}: where they begin, or "
                "the type of their numbers, is declared wrongly"
            )


@final
@dataclass(frozen=True, slots=True)
class _Array:
    """An array of a spectrum, as declared: its bytes in the binary file, and what they are."""

    spectrum: int
    what: str
    group: str
    first: int
    length: int
    width: int

    @property
    def end(self) -> int:
        return self.first + self.length * self.width

    def __str__(self) -> str:
        return f"the {self.what} of spectrum {self.spectrum}"


def _arrays(parser: Any) -> Iterator[_Array]:  # noqa: ANN401
    masses = (parser.mzGroupId, parser.mzOffsets, parser.mzLengths, parser.mzPrecision)
    heights = (
        parser.intGroupId,
        parser.intensityOffsets,
        parser.intensityLengths,
        parser.intensityPrecision,
    )
    for what, (group, offsets, lengths, kind) in (("masses", masses), ("intensities", heights)):
        for place, (first, length) in enumerate(zip(offsets, lengths, strict=True)):
            yield _Array(place, what, group, first, length, parser.sizeDict[kind])


def _check_array(file: Path, binary: Path, size: int, array: _Array, encoded: int | None) -> None:
    """That an array lies in the binary file, and takes the bytes that it should."""
    if array.length < 0 or array.first < HEAD:
        raise DataError(
            f"{file}: {array} can't be {array.length} numbers from byte {array.first} of "
            f"{binary.name} on: arrays begin after the first {HEAD}"
        )
    if array.end > size:
        raise DataError(
            f"{binary} is truncated, or {file.name} wrong: {array}, {array.length} numbers of "
            f"{array.width} bytes, should end at byte {array.end} of {size}"
        )
    if encoded is not None and encoded != array.end - array.first:
        raise DataError(
            f"{file}: {array} should be {array.length} numbers of {array.width} bytes, and take "
            f"{encoded} bytes"
        )


def _check_groups(file: Path, parser: Any) -> None:  # noqa: ANN401
    """That numbers are uncompressed, and of one type that is known."""
    groups = parser.metadata.referenceable_param_groups
    if any("zlib compression" in group.param_by_name for group in groups.values()):
        raise DataError(f"{file} is compressed, which can't be read: write it uncompressed")
    for what, name in (("masses", parser.mzGroupId), ("intensities", parser.intGroupId)):
        kinds = [kind for kind in parser.precisionDict if kind in groups[name].param_by_name]
        if len(kinds) != 1:
            raise DataError(
                f"{file} holds {what} of "
                + (f"several types, {few(kinds)}" if kinds else "a type that is not 32 or 64 bits")
            )


def _check_pair(file: Path, binary: Path, parser: Any) -> None:  # noqa: ANN401
    """That the binary file is whole and this one's, by its name and digest in the XML."""
    told = parser.metadata.file_description.param_by_name
    with binary.open("rb") as opened:
        own = opened.read(HEAD).hex()
        if UUID in told and _hex(told[UUID]) != own:
            raise DataError(
                f"{binary} is not the file that {file} was written with: its UUID differs"
            )
        for name in told.keys() & DIGESTS.keys():
            opened.seek(0)
            digest = hashlib.file_digest(opened, DIGESTS[name]).hexdigest()
            if _hex(told[name]) != digest:
                raise DataError(
                    f"{binary} is truncated or damaged: its {name[4:]} differs from {file}'s"
                )


def _hex(text: object) -> str:
    return str(text).strip("{}").replace("-", "").lower()


def _check_pixels(file: Path, parser: Any) -> None:  # noqa: ANN401
    """That each pixel has one spectrum, and that the image is no larger than it should be."""
    places = parser.coordinates
    (place, times), *_ = Counter(places).most_common(1)
    if times > 1:
        twice = [str(i) for i, other in enumerate(places) if other == place]
        raise DataError(f"{file}: one pixel, {place}, has the spectra {few(twice)}")
    for axis, along in zip("xy", zip(*places, strict=True), strict=False):
        declared = parser.imzmldict.get(f"max count of pixels {axis}")
        extent = max(along) - min(along) + 1  # not all files begin to count at 1
        if declared is not None and extent > declared:
            raise DataError(f"{file} declares {declared} pixels along {axis}, and has {extent}")
