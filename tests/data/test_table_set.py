"""Tables as data sets: given splits, contexts, and what single precision would lose."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from iresflow.data import Dataset, Scaling, TableOptions, load_vectors
from iresflow.data.cuts import ByTime
from iresflow.errors import DataError

NUMBERS = np.random.default_rng(0).normal(size=(60, 3))


def load(file: Path, **options: object) -> Dataset:
    return load_vectors("table", file, table=TableOptions(**options))


def save(file: Path, rows: np.ndarray = NUMBERS, names: str = "") -> Path:
    if file.suffix == ".npy":
        np.save(file, rows)
    else:
        np.savetxt(file, rows, delimiter=",", fmt="%.17g", header=names, comments="")
    return file


def rows_of(dataset: Dataset, part: str) -> list[tuple[float, ...]]:
    return [tuple(row) for row in getattr(dataset, part).values.tolist()]


def single(rows: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(row) for row in rows.astype(np.float32).tolist()]


@pytest.mark.parametrize("extension", ["npy", "csv"])
def test_no_row_moves_when_rows_are_added_anywhere(tmp_path: Path, extension: str) -> None:
    file = save(tmp_path / f"a.{extension}")
    before = load(file)
    grown = np.random.default_rng(1).permutation(
        np.concatenate([NUMBERS, np.random.default_rng(2).normal(size=(40, 3))])
    )
    after = load(save(file, grown))
    for part in ("train", "validation", "test"):
        assert set(rows_of(before, part)) <= set(rows_of(after, part))


def test_equal_rows_are_spread_over_the_splits(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2, size=(2000, 2))
    dataset = load(save(tmp_path / "a.npy", rows))
    share = float(dataset.train.values.mean())
    error = 4 * 0.5 / np.sqrt(len(dataset.test.values) * 2)
    assert abs(float(dataset.test.values.mean()) - share) < error
    assert len(dataset.test.values.unique(dim=0)) == 4


def test_files_of_their_own(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npy")
    test = save(tmp_path / "b.npy", NUMBERS[:4] + 1)
    validation = save(tmp_path / "c.npy", NUMBERS[:2] + 2)
    dataset = load(file, test_root=str(test), validation_root=str(validation))
    assert sorted(rows_of(dataset, "test")) == sorted(single(NUMBERS[:4] + 1))
    assert sorted(rows_of(dataset, "validation")) == sorted(single(NUMBERS[:2] + 2))
    assert sorted(rows_of(dataset, "train")) == sorted(single(NUMBERS))
    dataset = load(file, test_root=str(test))
    held = rows_of(dataset, "train") + rows_of(dataset, "validation")
    assert sorted(held) == sorted(single(NUMBERS)) and len(dataset.test) == 4
    assert "test from" in dataset.origin and "validation cut by a hash" in dataset.origin


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    file, other = save(tmp_path / "a.csv", names="a,b,c"), save(tmp_path / "b.csv", names="a,c,b")
    with pytest.raises(DataError, match=r"b\.csv has other columns than"):
        load(file, test_root=str(other))


def with_words(file: Path, words: list[str]) -> Path:
    lines = [
        ",".join([f"{row[0]:.17g}", word, f"{row[1]:.17g}", f"{row[2]:.17g}"])
        for row, word in zip(NUMBERS, words, strict=True)
    ]
    file.write_text("\n".join(["a,part,b,c", *lines]))
    return file


def test_a_column_that_says_the_split(tmp_path: Path) -> None:
    words = ["train"] * 40 + ["Test"] * 12 + ["val"] * 8
    dataset = load(with_words(tmp_path / "a.csv", words), split_column="part")
    assert sorted(rows_of(dataset, "train")) == sorted(single(NUMBERS[:40]))
    assert sorted(rows_of(dataset, "test")) == sorted(single(NUMBERS[40:52]))
    assert sorted(rows_of(dataset, "validation")) == sorted(single(NUMBERS[52:]))
    assert dataset.columns == ("a", "b", "c")
    assert dataset.origin == "train, validation, test from part"


def test_a_split_that_is_none(tmp_path: Path) -> None:
    words = ["train"] * 58 + ["later", "test"]
    with pytest.raises(DataError, match="row 59: 'later' is no split; allowed are train, "):
        load(with_words(tmp_path / "a.csv", words), split_column="part")
    with pytest.raises(DataError, match="has no column 'split'; it has a, part, b, c"):
        load(tmp_path / "a.csv", split_column="split")
    with pytest.raises(DataError, match="has no row to train on"):
        load(with_words(tmp_path / "a.csv", ["test"] * 60), split_column="part")


def test_time_holds_out_the_last_rows(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npy")
    dataset = load_vectors("table", file, validation=6, test=0.2, cut=ByTime())
    assert sorted(rows_of(dataset, "test")) == sorted(single(NUMBERS[48:]))
    assert sorted(rows_of(dataset, "validation")) == sorted(single(NUMBERS[42:48]))
    assert dataset.origin == "validation and test cut by time, the last samples being held out"


def times(unit: str) -> np.ndarray:
    start, span = {"seconds": (1.7e9, 1e4), "julian days": (2459000.5, 30.0)}[unit]
    rows = np.random.default_rng(0).normal(size=(2000, 2))
    rows[:, 0] = start + np.sort(np.random.default_rng(1).uniform(0, span, 2000))
    return rows


@pytest.mark.parametrize("unit", ["seconds", "julian days"])
def test_a_column_that_single_precision_would_merge_is_named(tmp_path: Path, unit: str) -> None:
    rows = times(unit)
    file = save(tmp_path / "a.csv", rows, "time,b")
    with pytest.raises(DataError, match="'time': single precision would merge its 2000") as caught:
        load(file)
    advised = yaml.safe_load(str(caught.value).rsplit("data.offset: ", 1)[1])["time"]
    dataset = load(file, offset={"time": advised})
    read = torch.cat([dataset.train.values, dataset.validation.values, dataset.test.values])
    back = np.sort(read[:, 0].double().numpy() + dataset.offset[0])
    assert np.abs(back - rows[:, 0]).max() < 1e-6 * np.ptp(rows[:, 0])
    assert dataset.offset == (advised, 0.0)


def test_columns_that_lose_nothing_are_not_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 4))
    rows[:, 1] += 100.0
    rows[:, 2] = 2.0**30 + 1024.0 * np.arange(5000)  # every one a float32
    rows[0, 3] = 1e9
    assert load(save(tmp_path / "a.npy", rows)).offset == ()


def test_contexts_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    rows = NUMBERS * [1.0, 50.0, 1.0] + [0.0, 2000.0, 3.0]
    file = save(tmp_path / "a.csv", rows, "a,b,c")
    dataset = load(file, context=("b", "a"))
    assert (dataset.columns, dataset.contexts, dataset.shape) == (("c",), ("b", "a"), (1,))
    train = dataset.train.contexts
    assert train is not None and train.dtype == torch.float32
    assert train.mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert train.std(0, correction=0).tolist() == pytest.approx([1, 1], rel=1e-6)
    assert dataset.scaling is not None
    for split in (dataset.train, dataset.test):
        assert split.contexts is not None
        known = dataset.scaling.undo(split.contexts)
        together = np.column_stack([known[:, 1], known[:, 0], split.values.double().numpy()])
        distances = np.abs(together[:, None] - rows[None]).max(2).min(1)
        assert distances.max() < 1e-4  # each row kept together


def test_contexts_take_the_scaling_of_a_run(tmp_path: Path) -> None:
    file = save(tmp_path / "a.csv", names="a,b,c")
    dataset = load(file, context=("b",), scaling=Scaling((1.0,), (2.0,)))
    first = dataset.test.contexts
    assert first is not None
    rows = {float(np.float32((row[1] - 1.0) / 2.0)) for row in NUMBERS}
    assert set(first[:, 0].tolist()) <= rows


@pytest.mark.parametrize("context", [("a", "b", "c"), ("a", "a")])
def test_contexts_that_leave_nothing(tmp_path: Path, context: tuple[str, ...]) -> None:
    file = save(tmp_path / "a.csv", names="a,b,c")
    with pytest.raises(DataError, match="no column is left to model, or"):
        load(file, context=context)


def test_a_context_that_is_no_column(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npy")
    with pytest.raises(DataError, match="has no column 'b'; it has 1, 2, 3"):
        load(file, context=("b",))
    assert load(file, context=("2",)).contexts == ("2",)


def test_contexts_may_be_what_single_precision_would_merge(tmp_path: Path) -> None:
    rows = times("seconds")
    dataset = load(save(tmp_path / "a.csv", rows, "time,b"), context=("time",))
    known = [split.contexts for split in (dataset.train, dataset.validation, dataset.test)]
    merged = torch.cat([context for context in known if context is not None])
    assert len(merged.unique()) > 1990


def test_contexts_keep_the_values_of_the_table_and_need_no_offset(tmp_path: Path) -> None:
    rows = NUMBERS.copy()
    rows[:, 1] = np.arange(60) % 3
    file = save(tmp_path / "a.csv", rows, "a,b,c")
    dataset = load(file, context=["b"])
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.known is not None and split.contexts is not None and dataset.scaling
        assert np.isin(split.known, [0, 1, 2]).all()
        assert torch.equal(dataset.scaling(split.known), split.contexts)
    with pytest.raises(DataError, match=r"column 'b' is a context.*leave it out of data\.offset"):
        load(file, context=["b"], offset={"b": 1.0})
