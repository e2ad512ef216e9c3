"""Vectors by name: densities and tables as data sets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from iresflow.data import VECTOR_NAMES, load_vectors
from iresflow.errors import DataError


@pytest.mark.parametrize("name", VECTOR_NAMES[:-1])
def test_density_as_dataset(name: str) -> None:
    dataset = load_vectors(name, count=400, validation=50, test=0.25)
    parts = [dataset.train, dataset.validation, dataset.test]
    assert [len(part) for part in parts] == [250, 50, 100]
    assert (dataset.shape, dataset.levels, dataset.columns) == ((2,), None, ("x", "y"))
    assert len(torch.cat([part.values for part in parts]).unique(dim=0)) == 400


def test_density_follows_the_seed() -> None:
    first, again, other = (load_vectors("rings", count=99, seed=seed) for seed in (1, 1, 2))
    assert first.train.values.equal(again.train.values)
    assert not first.train.values.equal(other.train.values)


def test_default_sizes() -> None:
    dataset = load_vectors("checkerboard")
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [
        48_000,
        6_000,
        6_000,
    ]


def test_too_few_points() -> None:
    with pytest.raises(ValueError, match="count=2; three parts"):
        load_vectors("rings", count=2)


def test_table_is_split_disjointly_and_completely(tmp_path: Path) -> None:
    table = np.arange(60, dtype=np.float32).reshape(20, 3)
    file = tmp_path / "a.csv"
    np.savetxt(file, table, delimiter=",", header="a,b,c", comments="")
    dataset = load_vectors("table", file, validation=4, seed=1)
    parts = [dataset.train, dataset.validation, dataset.test]
    assert len(dataset.validation) == 4 and len(dataset.test) >= 1
    joined = torch.cat([part.values for part in parts])
    assert joined[joined[:, 0].argsort()].equal(torch.from_numpy(table))
    assert (dataset.columns, dataset.classes, dataset.shape) == (("a", "b", "c"), (), (3,))
    again, other = (load_vectors("table", file, validation=4, seed=seed) for seed in (1, 2))
    assert dataset.train.values.equal(again.train.values)
    assert not dataset.train.values.equal(other.train.values)


def test_constant_column(tmp_path: Path) -> None:
    table = np.random.default_rng(0).random((20, 3))
    table[:, 1] = 5.0
    np.save(tmp_path / "a.npy", table)
    with pytest.raises(DataError, match=r"a\.npy, column '2': all 18 training rows are 5"):
        load_vectors("table", tmp_path / "a.npy")


def test_constant_column_with_a_name(tmp_path: Path) -> None:
    lines = ["a,b", *(f"{i},7" for i in range(20))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"column 'b': all \d+ training rows are 7; "):
        load_vectors("table", tmp_path / "a.csv")


@pytest.mark.parametrize(("root", "count"), [(None, None), ("a.npy", 10)])
def test_table_needs_a_path_and_no_count(root: str | None, count: int | None) -> None:
    with pytest.raises(ValueError, match="'table' got root="):
        load_vectors("table", root, count=count)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'eight-gaussians'"):
        load_vectors("8-gaussians")
