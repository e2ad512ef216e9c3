"""Tables from files: what is read, and the file, row and column of whatever is not."""

from pathlib import Path

import numpy as np
import pytest

from iresflow.data.tables import read_table
from iresflow.errors import DataError

NUMBERS = np.random.default_rng(0).normal(size=(12, 3))


def text(delimiter: str = ",", rows: np.ndarray = NUMBERS) -> list[str]:
    return [delimiter.join(f"{value:.17g}" for value in row) for row in rows]


def write(tmp_path: Path, lines: list[str], **options: str) -> Path:
    file = tmp_path / "table.csv"
    file.write_text("\n".join(lines) + "\n", **options)
    return file


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8])
def test_npy(tmp_path: Path, dtype: type) -> None:
    table = np.abs(100 * NUMBERS).astype(dtype)
    np.save(tmp_path / "a.npy", table)
    read, names = read_table(tmp_path / "a.npy")
    assert read.dtype == np.float64 and names == ()
    assert np.array_equal(read, table.astype(np.float64))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
@pytest.mark.parametrize("header", [True, False])
def test_csv(tmp_path: Path, delimiter: str, header: bool) -> None:
    lines = [delimiter.join(["height", "a width", "x"])] * header + text(delimiter)
    read, names = read_table(write(tmp_path, lines))
    assert np.array_equal(read, NUMBERS)
    assert names == (("height", "a width", "x") if header else ())


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    lines = ["", '"a,\nb";"c";', *text(";", NUMBERS[:6]), "", *text(";", NUMBERS[6:]), "", ""]
    lines = [line.replace(";", ",") for line in lines]
    file = tmp_path / "table.csv"
    file.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    read, names = read_table(file)
    assert names == ("a,\nb", "c", "column 3")
    assert np.array_equal(read, NUMBERS)


def test_csv_as_numpy_writes_it(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.csv", NUMBERS, delimiter=",", header="a,b,c")
    read, names = read_table(tmp_path / "a.csv")
    assert names == ("a", "b", "c") and np.allclose(read, NUMBERS)


def test_one_column(tmp_path: Path) -> None:
    read, names = read_table(write(tmp_path, ["x", *(str(i) for i in range(10))]))
    assert read.shape == (10, 1) and names == ("x",)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.npy does not exist"):
        read_table(tmp_path / "a.npy")
    with pytest.raises(DataError, match="is a directory"):
        read_table(tmp_path)


def test_unknown_extension(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(DataError, match=r"'\.xlsx'; tables are read from \.npy, \.npz, \.csv"):
        read_table(tmp_path / "a.xlsx")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"plain text", b"PK\x03\x04 half"])
def test_npy_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match="a.npy is not an array") as caught:
        read_table(tmp_path / "a.npy")
    assert caught.value.__context__ is None


def test_truncated_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NUMBERS)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(DataError, match="truncated"):
        read_table(tmp_path / "a.npy")


def test_pickled_npy_is_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, "a"]], dtype=object))
    with pytest.raises(DataError, match="allow_pickle=False"):
        read_table(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", [complex, bool, "U5"])
def test_npy_of_other_types(tmp_path: Path, dtype: type | str) -> None:
    np.save(tmp_path / "a.npy", NUMBERS.astype(dtype))
    with pytest.raises(DataError, match="integers or floating-point numbers are needed"):
        read_table(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(36,), (3, 4, 3)])
def test_npy_of_other_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", NUMBERS.reshape(shape))
    with pytest.raises(DataError, match="2-D .* is needed: reshape"):
        read_table(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_npy_cell_that_is_not_finite(tmp_path: Path, value: float) -> None:
    table = NUMBERS.copy()
    table[6, 1] = table[7, 0] = value
    np.save(tmp_path / "a.npy", table)
    with pytest.raises(DataError, match=r"a\.npy, row 6, column 1 \(from 0\): .*2 of 36"):
        read_table(tmp_path / "a.npy")


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("value", ["nan", "-inf", "1e39"])
def test_csv_cell_that_is_not_finite(tmp_path: Path, header: bool, value: str) -> None:
    lines = ["a,b,c"] * header + text()
    lines[4] = f"1,2,{value}"
    lines.insert(2, "")
    column = r"column 3 \('c'\)" if header else "column 3:"
    with pytest.raises(DataError, match=rf"table\.csv, line 6, {column}.*not a finite"):
        read_table(write(tmp_path, lines))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("abc", "'abc' is not a number"), ("", "the cell is empty"), ("1_0", "'1_0' is not")],
)
@pytest.mark.parametrize("header", [True, False])
def test_csv_cell_that_is_no_number(tmp_path: Path, cell: str, reason: str, header: bool) -> None:
    lines = ["a,b,c"] * header + text()
    lines[7] = f"1,{cell},3"
    lines.insert(2, "")
    column = r"column 2 \('b'\)" if header else "column 2"
    with pytest.raises(DataError, match=rf"table\.csv, line 9, {column}: {reason}") as caught:
        read_table(write(tmp_path, lines))
    assert caught.value.__context__ is None


def test_csv_with_decimal_commas(tmp_path: Path) -> None:
    lines = ["a;b"] + [f"{i};{i},5" for i in range(12)]
    with pytest.raises(DataError, match=r"line 2, column 2 \('b'\): '0,5'.*must be a point"):
        read_table(write(tmp_path, lines))


@pytest.mark.parametrize("row", ["1,2", "1,2,3,4", "1,2,3,", "  "])
@pytest.mark.parametrize("header", [True, False])
def test_ragged_csv(tmp_path: Path, row: str, header: bool) -> None:
    lines = ["a,b,c"] * header + text()
    lines[5] = row
    with pytest.raises(DataError, match=rf"line 6: {row.count(',') + 1} cells.*first line has 3"):
        read_table(write(tmp_path, lines))


def test_header_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: 3 cells, but the first line has 2"):
        read_table(write(tmp_path, ["a,b", *text()]))


def test_first_line_half_header(tmp_path: Path) -> None:
    message = r"line 1, column 1: 'year' is not a number; if this line is a header, '2019'"
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, ["year,2019,2020", *text()]))


@pytest.mark.parametrize("lines", [[], ["a,b"], ["a,b", "1,2"], [""]])
def test_too_few_rows(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match=r"[01] rows and .* at least 10 rows"):
        read_table(write(tmp_path, lines))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_csv_of_another_encoding(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(write(tmp_path, ["höhe,b,c", *text()], encoding=encoding))


def test_csv_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(128)) * 20)
    with pytest.raises(DataError, match="a.csv"):
        read_table(tmp_path / "a.csv")
