"""Spectra from text and arrays, and their grids; what is no spectrum is refused."""

import numpy as np
import pytest

from iresflow.errors import DataError
from iresflow.spectra.collection import Spectra, gather
from iresflow.spectra.grids import (
    bin_edges,
    common_grid,
    equidistant_grid,
    resample,
    tof_grid,
)
from iresflow.spectra.reading.imzml import read_imzml
from iresflow.spectra.reading.text import read_text

GRID = np.linspace(1000.0, 1010.0, 41)


def heights():
    return np.random.default_rng(0).gamma(2.0, 10.0, (3, len(GRID))).astype(np.float32)


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
