"""Images in imzML: what pyimzml wrote is read back, and pairs that don't fit are refused."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyimzml.compression import ZlibCompression
from pyimzml.ImzMLWriter import ImzMLWriter

from iresflow.errors import DataError, MissingLibraryError
from iresflow.spectra.grids import equidistant_grid
from iresflow.spectra.reading.imzml import read_imzml

GRID = np.linspace(1000.0, 1010.0, 41)
PLACES = [(1, 1, 1), (2, 1, 1), (1, 2, 1)]


def heights():
    return np.random.default_rng(0).gamma(2.0, 10.0, (3, len(GRID))).astype(np.float32)


def written(directory, masses, intensities, mode="continuous", **options):
    path = directory / "image.imzML"
    with ImzMLWriter(str(path), mode=mode, **options) as writer:
        for mass, row, place in zip(masses, intensities, PLACES, strict=True):
            writer.addSpectrum(mass, row, place)
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("mode", ["continuous", "processed", "auto"])
def test_what_pyimzml_wrote_is_read_back(tmp_path, mode, kind):
    rows = heights().astype(kind)
    path = written(tmp_path, [GRID] * 3, rows, mode, intensity_dtype=kind)
    found = read_imzml(path)
    np.testing.assert_array_equal(found.X, rows)
    np.testing.assert_array_equal(found.grid, GRID)
    assert found.X.dtype == kind and found.coordinates.tolist() == [list(p) for p in PLACES]


def test_processed_spectra_of_different_lengths_come_to_one_grid(tmp_path):
    masses = [GRID, GRID[3:], np.linspace(1001.0, 1009.0, 20)]
    # Linear functions of the mass: their means over bins are their values at the middles.
    rows = [3 * (mass - 990) for mass in masses]
    path = written(tmp_path, masses, rows, "processed", intensity_dtype=np.float64)
    found = read_imzml(path)
    np.testing.assert_array_equal(found.grid, masses[2])  # the coarsest, which all cover
    inner = slice(1, -1)
    np.testing.assert_allclose(
        found.X[:, inner], np.broadcast_to(3 * (found.grid - 990), found.X.shape)[:, inner]
    )
    onto = equidistant_grid(1002.0, 1008.0, 0.5)
    found = read_imzml(path, grid=onto)
    np.testing.assert_allclose(found.X, np.broadcast_to(3 * (onto - 990), (3, len(onto))))


def test_pairs_that_are_cut_off_or_incomplete_are_one_clear_error(tmp_path):
    path = written(tmp_path, [GRID] * 3, heights())
    xml, binary = path.read_bytes(), path.with_suffix(".ibd").read_bytes()

    def refused(message, xml=xml, binary=binary):
        path.write_bytes(xml)
        path.with_suffix(".ibd").write_bytes(binary)
        with pytest.raises(DataError, match=message) as caught:
            read_imzml(path)
        assert "\n" not in str(caught.value) and str(path.stem) in str(caught.value)

    for part in (0.1, 0.5, 0.9):
        refused("truncated or no imzML", xml=xml[: int(part * len(xml))])
        refused("truncated", binary=binary[: int(part * len(binary))])
    refused("truncated or no imzML", xml=b"")
    refused("holds no spectrum", xml=b"<mzML/>")
    refused("UUID differs", binary=b"\0" * 16 + binary[16:])
    refused("SHA-1 differs", binary=binary[:-1] + bytes([binary[-1] ^ 1]))
    # Any digest counts, and where there is none, the places of the arrays tell.
    digest = hashlib.sha1(binary).hexdigest().upper().encode()
    other = xml.replace(b"IMS:1000091", b"IMS:1000090").replace(b"ibd SHA-1", b"ibd MD5")
    assert digest in other
    refused("MD5 differs", other)
    path.write_bytes(other.replace(digest, hashlib.md5(binary).hexdigest().encode()))
    np.testing.assert_array_equal(read_imzml(path).X, heights())
    bare = re.sub(rb"<cvParam[^>]*ibd SHA-1[^>]*>", b"", xml)
    refused(
        "the intensities of spectrum 2, 41 numbers of 4 bytes, should end at", bare, binary[:-4]
    )
    refused("UUID", bare, b"")
    path.write_bytes(xml)
    path.with_suffix(".ibd").unlink()
    with pytest.raises(DataError, match=r"needs one file image\.ibd"):
        read_imzml(path)
    with pytest.raises(DataError, match="there is no file"):
        read_imzml(tmp_path / "other.imzML")


def parameter(name, value):
    return f'name="{name}" value="{value}"'.encode()


def moved(name, old, new):
    """A parameter with its value, and with another one."""
    return parameter(name, old), parameter(name, new)


# Masses take the bytes 16 to 344 and intensities of 164 bytes each follow.
MISFITS = {
    "a spectrum more": (
        b'spectrumList count="3"',
        b'spectrumList count="4"',
        "declares 4 .* holds 3",
    ),
    "a spectrum less": (
        b'spectrumList count="3"',
        b'spectrumList count="2"',
        "declares 2 .* holds 3",
    ),
    "a count of words": (b'spectrumList count="3"', b'spectrumList count="x"', "no imzML file"),
    "masses in the head": (
        *moved("external offset", 16, 8),
        "the masses of spectrum 0 can't be 41 numbers from byte 8",
    ),
    "before the file": (
        *moved("external offset", 344, -5),
        "the intensities of spectrum 0 can't be",
    ),
    "beyond the file": (
        *moved("external offset", 344, 2**70),
        "the intensities of spectrum 0, 41 .* should end at byte 1180591620717411303588 of 836",
    ),
    "intensities of another": (
        *moved("external offset", 508, 344),
        "the intensities of spectrum 0 and the intensities of spectrum 1 share bytes",
    ),
    "one number late": (
        *moved("external offset", 508, 512),
        "the intensities of spectrum 1 and the intensities of spectrum 2 share bytes",
    ),
    "intensities in the masses": (
        *moved("external offset", 344, 340),
        "the masses of spectrum 0 and the intensities of spectrum 0 share bytes",
    ),
    "a negative length": (*moved("external array length", 41, -41), "can't be -41 numbers"),
    "a long length": (
        *moved("external array length", 41, 10**12),
        "the masses of spectrum 0, 1000000000000 numbers of 8 bytes",
    ),
    "a short length": (
        *moved("external array length", 41, 40),
        "40 numbers of 8 bytes, and take 328 bytes",
    ),
    "a narrower type": (
        b'accession="MS:1000523" name="64-bit float"',
        b'accession="MS:1000521" name="32-bit float"',
        "the masses of spectrum 0 should be 41 numbers of 4 bytes, and take 328 bytes",
    ),
    "two types": (
        b'<cvParam cvRef="MS" accession="MS:1000515"',
        b'<cvParam cvRef="MS" accession="MS:1000523" name="64-bit float"/>'
        b'<cvParam cvRef="MS" accession="MS:1000515"',
        "intensities of several types, 32-bit float, 64-bit float",
    ),
    "an array of another kind": (
        b'accession="MS:1000515" name="intensity array"',
        b'accession="MS:1000516" name="charge array"',
        "spectrum 0 has 0 arrays whose group of parameters says that they are intensities",
    ),
    "masses twice": (
        b'referenceableParamGroupRef ref="intensityArray"',
        b'referenceableParamGroupRef ref="mzArray"',
        "spectrum 0 has 2 arrays .* masses",
    ),
    "a pixel twice": (*moved("position x", 2, 1), r"one pixel, \(1, 1, 1\), has the spectra 0, 1"),
    "a smaller image": (
        *moved("max count of pixels y", 2, 1),
        "declares 1 pixels along y, and has 2",
    ),
    "half a pixel": (*moved("position x", 2, 1.5), "no imzML file"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_declared_numbers_that_do_not_fit_are_one_clear_error(tmp_path, name):
    path = written(tmp_path, [GRID] * 3, heights())
    old, new, message = MISFITS[name]
    xml = path.read_bytes()
    assert old in xml
    path.write_bytes(xml.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as caught:
        read_imzml(path)
    assert "\n" not in str(caught.value) and "image" in str(caught.value)


def test_wrong_types_show_by_the_places_alone(tmp_path):
    path = written(tmp_path, [GRID] * 3, heights())
    silent = re.sub(rb"<cvParam[^>]*(encoded length|SHA-1)[^>]*>", b"", path.read_bytes())
    path.write_bytes(silent)
    np.testing.assert_array_equal(read_imzml(path).X, heights())
    narrow, wide = (
        f'accession="MS:{number}" name="{bits}-bit float"'.encode()
        for number, bits in ((1000521, 32), (1000523, 64))
    )
    path.write_bytes(silent.replace(narrow, wide))
    with pytest.raises(DataError, match="the intensities of spectrum 2.* end at byte 1000 of 836"):
        read_imzml(path)
    with path.with_suffix(".ibd").open("ab") as binary:
        binary.write(bytes(500))
    with pytest.raises(DataError, match="share bytes of image.ibd: .* the type of their numbers"):
        read_imzml(path)


def test_images_that_count_otherwise_are_read(tmp_path):
    path = written(tmp_path, [GRID] * 3, heights())
    xml = path.read_bytes()
    for axis in "xy":  # pixels from 0, and no list of how many
        for place in (1, 2):
            xml = xml.replace(*moved(f"position {axis}", place, place - 1))
    path.write_bytes(xml.replace(b'spectrumList count="3"', b"spectrumList"))
    assert read_imzml(path).coordinates.tolist() == [[0, 0, 1], [1, 0, 1], [0, 1, 1]]


def test_compressed_files_and_wide_numbers_are_refused_not_misread(tmp_path):
    path = written(tmp_path, [GRID] * 3, heights(), intensity_compression=ZlibCompression())
    with pytest.raises(DataError, match="compressed"):
        read_imzml(path)
    path = written(tmp_path, [GRID] * 3, heights())
    path.write_bytes(
        path.read_bytes().replace(b"32-bit", b"16-bit").replace(b"MS:1000521", b"MS:1000520")
    )
    with pytest.raises(DataError, match="32 or 64 bits"):
        read_imzml(path)


def test_images_of_bad_spectra_are_refused_by_the_spectrum(tmp_path):
    rows = heights()
    for bad, message in ((np.nan, "NaN"), (-1.0, "Negative")):
        changed = rows.copy()
        changed[1, 5] = bad
        with pytest.raises(DataError, match=f"spectrum 1.*{message}"):
            read_imzml(written(tmp_path, [GRID] * 3, changed, "processed"))
    masses = [GRID, GRID, GRID[::-1]]
    with pytest.raises(DataError, match="spectrum 2.*unsorted"):
        read_imzml(written(tmp_path, masses, rows, "processed"))
    with pytest.raises(DataError, match="don't overlap"):
        read_imzml(written(tmp_path, [GRID, GRID, GRID + 20], rows, "processed"))


def test_without_the_library_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyimzml", None)
    with pytest.raises(MissingLibraryError, match=r"iresflow\[spectra\]"):
        read_imzml(tmp_path / "image.imzML")


def test_the_format_s_own_examples_are_read_alike(tmp_path):
    root = Path(os.environ.get("IRESFLOW_DATA", ""), "spectra")
    if not (root / "Example_Processed.imzML").is_file():
        pytest.skip("IRESFLOW_DATA has no spectra")
    one, other = (read_imzml(root / f"Example_{n}.imzML") for n in ("Continuous", "Processed"))
    assert one.X.shape == other.X.shape == (9, 8399)
    np.testing.assert_array_equal(one.X, other.X)
    np.testing.assert_array_equal(one.coordinates, other.coordinates)
    assert {tuple(c) for c in one.coordinates[:, :2]} == {
        (x, y) for x in (1, 2, 3) for y in (1, 2, 3)
    }
    shutil.copy(root / "Example_Continuous.imzML", tmp_path / "mixed.imzML")
    shutil.copy(root / "Example_Processed.ibd", tmp_path / "mixed.ibd")
    with pytest.raises(DataError, match="UUID differs"):
        read_imzml(tmp_path / "mixed.imzML")
