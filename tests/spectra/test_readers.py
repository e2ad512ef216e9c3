"""Spectra from files: what pyimzml wrote is read back, and what is no spectrum is refused."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyimzml.compression import ZlibCompression
from pyimzml.ImzMLWriter import ImzMLWriter

from iresflow.errors import DataError, MissingLibraryError
from iresflow.spectra.collection import Spectra, gather
from iresflow.spectra.grids import (
    bin_edges,
    common_grid,
    equidistant_grid,
    resample,
    tof_grid,
)
from iresflow.spectra.readers import read_imzml, read_text

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
    refused("truncated or no imzML", xml=b"<mzML/>")
    refused("UUID differs", binary=b"\0" * 16 + binary[16:])
    refused("SHA-1 differs", binary=binary[:-1] + bytes([binary[-1] ^ 1]))
    # Without a digest in the file, the lengths tell.
    unsigned = xml.replace(b"IMS:1000091", b"IMS:1000090")
    digest = hashlib.sha1(binary).hexdigest().upper().encode()
    assert digest in xml
    bare = unsigned.replace(b'name="ibd SHA-1"', b'name="ibd MD5"')
    refused("spectrum 2 should have 41 masses and 41 intensities", bare, binary[:-4])
    path.write_bytes(xml)
    path.with_suffix(".ibd").unlink()
    with pytest.raises(DataError, match=r"needs one file image\.ibd"):
        read_imzml(path)
    with pytest.raises(DataError, match="there is no file"):
        read_imzml(tmp_path / "other.imzML")


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


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";", ", "])
@pytest.mark.parametrize("head", ["", "# a remark\n", "mz intensity\n", "\nm/z;I\n"])
def test_text_of_two_columns_is_read_back(tmp_path, separator, head):
    rows = heights().astype(np.float64)
    files = []
    for place, row in enumerate(rows):
        lines = [
            f"{m!r}{separator}{v!r}" for m, v in zip(GRID.tolist(), row.tolist(), strict=True)
        ]
        files.append(tmp_path / f"{place}.txt")
        files[-1].write_text(head + "\n".join(lines) + "\n")
    found = read_text(files)
    np.testing.assert_array_equal(found.X, rows)
    np.testing.assert_array_equal(found.grid, GRID)
    np.testing.assert_array_equal(read_text(str(files[1])).X, rows[1:2])  # one by its name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no line"),
        ("mz intensity\n", "holds no line"),
        ("mz intensity\nmz intensity\n1 2\n", "line 2"),
        ("1000 1\n1001\n", "line 2: '1001'"),
        ("1000 1\n1001 1 1\n", "line 2"),
        ("1000 1\n1001 one\n", "line 2"),
        ("1 000 1\n", "line 1"),
        ("1000 1\n999 1\n", "unsorted"),
        ("1000 1\n1000 2\n", "twice"),
        ("1000 1\n1001 -2\n", "Negative"),
        ("1000 1\n1001 nan\n", "NaN"),
        ("1000 1\n", "two or more masses"),
    ],
)
def test_text_that_is_no_spectrum_is_refused_by_file_and_line(tmp_path, text, message):
    file = tmp_path / "one.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_text([file])
    assert str(file) in str(caught.value)


def test_text_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        read_text([])
    for read, file in ((read_text, ["some.txt"]), (read_imzml, "some.imzML")):
        with pytest.raises(ValueError, match="got unsorted: 5, 4"):  # the caller's fault
            read(file, grid=[5.0, 4.0])
    with pytest.raises(DataError, match="could not be read"):
        read_text([tmp_path / "none.txt"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="could not be read"):
        read_text([tmp_path / "binary.txt"])


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


# Arrays and grids.


def test_gathered_arrays_and_what_is_refused():
    rows = heights()
    found = gather([GRID] * 3, rows, labels=["a", "b", "a"], cores=[1, 2, 3])
    np.testing.assert_array_equal(found.X, rows)
    assert found.labels.tolist() == ["a", "b", "a"] and len(found) == 3 and found.arrays is None
    part = found[found.labels == "a"]
    assert part.cores.tolist() == [1, 3] and part.labels.tolist() == ["a", "a"]
    np.testing.assert_array_equal(part.X, rows[[0, 2]])
    for masses, values, message in (
        ([], [], "no spectrum"),
        ([GRID, GRID], rows[:1], "got 2 and 1"),
        ([[]], [[]], "spectrum 0.*0 feature"),
        ([GRID], [rows[0, :5]], "spectrum 0.*41 masses, and the spectra 5 bins"),
        ([GRID], [rows[:1]], "dim"),
        ([GRID, GRID + 50], rows[:2], "don't overlap"),
        ([GRID, GRID + 9.9], rows[:2], "two or more"),
    ):
        with pytest.raises(ValueError, match=message):
            gather(masses, values)
    for known, message in (
        ({"labels": [0, 1]}, r"labels has the shape \(2,\)"),
        ({"coordinates": [1, 2, 3]}, "coordinates"),
        ({"arrays": [0.0, np.nan, 1.0]}, "arrays holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            Spectra(rows, GRID, **known)


def test_a_new_grid_has_the_means_of_the_interpolant():
    rng = np.random.default_rng(1)
    old = np.sort(rng.uniform(100, 200, 300))
    values = rng.gamma(2.0, 1.0, (2, 300))
    for onto in (tof_grid(101, 199, 2.0), equidistant_grid(101, 199, 0.05), old[5:-5:7]):
        edges = bin_edges(onto)
        fine = np.linspace(0, 1, 4001)[1::2]
        x = edges[:-1, None] + np.diff(edges)[:, None] * fine
        oracle = [np.interp(x, old, row).mean(1) for row in values]
        np.testing.assert_allclose(resample(values, old, onto), oracle, rtol=2e-3)
    np.testing.assert_array_equal(resample(values, old, old), values)


def test_a_new_grid_keeps_the_area_of_a_peak():
    old = tof_grid(1800, 2200)
    peak = np.exp(-((old - 2000) ** 2) / 2 / 0.3**2)
    area = 0.3 * np.sqrt(2 * np.pi)
    for width in (0.05, 0.163, 1.0, 3.0):
        onto = equidistant_grid(1900, 2100, width)
        found = resample(peak, old, onto) @ np.diff(bin_edges(onto))
        assert found == pytest.approx(area, rel=1e-6)
    # The control: values at the middles alone do not.
    wide = equidistant_grid(1900, 2100, 3.0)
    assert np.interp(wide, old, peak) @ np.diff(bin_edges(wide)) != pytest.approx(area, rel=0.1)


def test_grids_and_their_edges():
    grid = tof_grid(500, 5000)
    edges = bin_edges(grid)
    assert len(grid) == round(4500 / 0.163)
    assert np.diff(edges).mean() == pytest.approx(0.163, rel=1e-4)
    # Equal flight times: the roots of the masses are equidistant.
    np.testing.assert_allclose(
        np.diff(np.sqrt(edges[1:-1])), np.diff(np.sqrt(edges))[5], rtol=1e-4
    )
    np.testing.assert_allclose(bin_edges([1.0, 2.0, 4.0]), [0.5, 1.5, 3.0, 5.0])
    np.testing.assert_array_equal(common_grid([GRID, GRID[3:-2]]), GRID[3:-2])
    for bad in ([1.0], [[1.0, 2.0]], [2.0, 1.0], [1.0, 1.0], [1.0, np.nan], [0.0, 1.0]):
        with pytest.raises(ValueError, match="masses"):
            bin_edges(bad)
    for arguments, words in (
        ((0, 5, 1), "low must be a finite number above 0, got 0"),
        ((5, 4, 1), "the first mass of bins is below the last one"),
        ((1, 9, 0), "width must be a finite number above 0"),
        ((1, 2, 5), "bins of 5 Da leave 0 of them"),
        ((1, np.inf, 1), "high must be a finite number above 0, got inf"),
        ((1, "9", 1), "high must be a finite number above 0, got '9'"),
    ):
        for make in (tof_grid, equidistant_grid):
            with pytest.raises(ValueError, match=words):
                make(*arguments)
    with pytest.raises(ValueError, match="leaves the one"):
        resample(heights(), GRID, GRID + 1)
    with pytest.raises(ValueError, match="on a grid of 41"):
        resample(heights()[:, :5], GRID, GRID)
