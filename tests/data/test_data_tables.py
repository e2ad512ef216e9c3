"""Tables from files: what is read, and the file, row and column of whatever is not."""

import sys
from pathlib import Path

import numpy as np
import pytest

from iresflow.data.tables.files import read_parts, read_table
from iresflow.data.tables.text import write_rows
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


def test_the_columns_of_a_header_alone_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 rows and 2 columns"):
        read_table(write(tmp_path, ["a,b"]))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_csv_of_another_encoding(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(write(tmp_path, ["höhe,b,c", *text()], encoding=encoding))


def test_csv_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(bytes(range(128)) * 20)
    with pytest.raises(DataError, match="a.csv"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("names", ["0,1,2", "2019,2020,2021", "1990,2000,2020"])
def test_a_header_of_numbers_is_asked_about(tmp_path: Path, names: str) -> None:
    file = write(tmp_path, [names, *text()])
    with pytest.raises(DataError, match="may be the names of the columns or a row: say which"):
        read_table(file)
    read, named = read_table(file, header=True)
    assert np.array_equal(read, NUMBERS) and named == tuple(names.split(","))
    read, named = read_table(file, header=False)
    assert len(read) == 13 and named == ()


def test_counted_columns_of_integers_are_asked_about(tmp_path: Path) -> None:
    lines = ["0,1,2", *(f"{i},{3 * i},{i % 4}" for i in range(12))]
    with pytest.raises(DataError, match="the first line is 0, 1, 2, which may be"):
        read_table(write(tmp_path, lines))


@pytest.mark.parametrize(
    "lines",
    [
        [f"{i},{np.cos(i):.6g}" for i in range(12)],
        [f"{x:g}" for x in np.linspace(0, 1, 11)],
        ["3,1,2", *text()],
        ["1,2,3", *(f"{i},{i + 1},{i * i}" for i in range(12))],
    ],
)
def test_a_first_row_of_integers_may_be_a_row(tmp_path: Path, lines: list[str]) -> None:
    assert len(read_table(write(tmp_path, lines))[0]) == len(lines)


@pytest.mark.parametrize(
    ("first", "names"), [("", ("a", "b", "c")), ("Unnamed: 0", ("a", "b", "c"))]
)
def test_the_index_of_pandas_is_left_out(
    tmp_path: Path, first: str, names: tuple[str, ...]
) -> None:
    rows = np.column_stack([np.arange(12), NUMBERS])
    with pytest.warns(UserWarning, match="the first column has no name and counts the rows"):
        read, named = read_table(write(tmp_path, [",".join([first, *names]), *text(rows=rows)]))
    assert np.array_equal(read, NUMBERS) and named == names


def test_the_index_of_pandas_beside_counted_columns(tmp_path: Path) -> None:
    rows = np.column_stack([np.arange(12), NUMBERS])
    with pytest.warns(UserWarning, match="is left out as their index"):
        read, named = read_table(write(tmp_path, [",0,1,2", *text(rows=rows)]))
    assert np.array_equal(read, NUMBERS) and named == ("0", "1", "2")


def test_an_unnamed_column_of_measurements_is_kept(tmp_path: Path) -> None:
    read, named = read_table(write(tmp_path, [",b,c", *text()]))
    assert np.array_equal(read, NUMBERS) and named == ("column 1", "b", "c")


OLDER = np.lib.NumpyVersion(np.__version__) < "2.3.0"

NEGATIVE = pytest.mark.skipif(OLDER, reason="older NumPy takes -1 for as many as there are")


@pytest.mark.parametrize(
    "shape",
    [(10**12, 3), (2**62, 4), (10**30, 3), pytest.param((-1, 3), marks=NEGATIVE), (12, 2**40)],
)
def test_npy_of_an_absurd_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    np.save(tmp_path / "a.npy", NUMBERS)
    content = (tmp_path / "a.npy").read_bytes()
    header = content[10:128].replace(b"(12, 3)", str(shape).encode())
    header = header.rstrip(b" \n").ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(content[:10] + header + content[128:])
    with pytest.raises(DataError, match=r"a\.npy"):
        read_table(tmp_path / "a.npy")


def test_npz_of_one_array_and_of_splits(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", NUMBERS)
    assert np.array_equal(read_table(tmp_path / "a.npz")[0], NUMBERS)
    np.savez(tmp_path / "b.npz", train=NUMBERS[:9], test=NUMBERS[9:])
    table = read_parts(tmp_path / "b.npz")
    assert np.array_equal(table.values, NUMBERS) and table.words == ["train"] * 9 + ["test"] * 3
    with pytest.raises(DataError, match="arrays of several splits"):
        read_table(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=NUMBERS, y=NUMBERS)
    with pytest.raises(DataError, match="holds the arrays x, y; allowed is one"):
        read_table(tmp_path / "c.npz")


def test_npz_names_its_columns(tmp_path: Path) -> None:
    names = np.array(["a", "b", "c"])
    np.savez(tmp_path / "a.npz", samples=NUMBERS, columns=names)
    read, named = read_table(tmp_path / "a.npz")
    assert np.array_equal(read, NUMBERS) and named == ("a", "b", "c")
    np.savez(tmp_path / "b.npz", train=NUMBERS[:9], test=NUMBERS[9:], columns=names)
    table = read_parts(tmp_path / "b.npz")
    assert table.names == ("a", "b", "c") and table.words == ["train"] * 9 + ["test"] * 3
    for wrong in (names[:2], np.arange(3)):
        np.savez(tmp_path / "c.npz", samples=NUMBERS, columns=wrong)
        with pytest.raises(DataError, match="names of the 3 columns are needed"):
            read_table(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", samples=NUMBERS, labels=np.arange(12), columns=names)
    with pytest.raises(DataError, match="arrays samples, labels; allowed is one"):
        read_table(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz")
    with pytest.raises(DataError, match="arrays of nothing"):
        read_table(tmp_path / "e.npz")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    told = "the columns 1 and 3 are all called 'a'"
    with pytest.raises(DataError, match=told):
        read_table(write(tmp_path, ["a,b, a", *text()]))
    np.savez(tmp_path / "a.npz", samples=NUMBERS, columns=np.array(["a", "b", "a"]))
    with pytest.raises(DataError, match=told):
        read_table(tmp_path / "a.npz")


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow to be read"):
        read_table(tmp_path / "a.parquet")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"a": NUMBERS[:, 0], "part": ["train"] * 8 + ["test"] * 4, "b": NUMBERS[:, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    table = read_parts(tmp_path / "a.parquet", split_column="part")
    assert np.array_equal(table.values, NUMBERS[:, :2]) and table.names == ("a", "b")
    assert table.words == columns["part"]
    with pytest.raises(DataError, match="column 'part' holds"):
        read_table(tmp_path / "a.parquet")
    columns["a"] = [None, *NUMBERS[1:, 0]]
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 0, column 0 \(from 0\): nan is not"):
        read_parts(tmp_path / "a.parquet", split_column="part")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="could not be read"):
        read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize("names", [(), ("a", "b, c", "d")])
def test_written_rows_are_read_back_exactly(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_rows(tmp_path / "a.csv", NUMBERS, names)
    read, named = read_table(tmp_path / "a.csv")
    assert np.array_equal(read, NUMBERS) and named == names
