"""Splits refuse what does not fit together; cuts are disjoint, complete and seeded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from iresflow.data import Dataset, Scaling, Split, hold_out, resolve_root
from iresflow.data.base import unknown_name
from iresflow.data.cuts import part_size
from iresflow.data.shuffles import split_in_three


def images(count: int = 4, *, side: int = 2) -> Split:
    values = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    return Split(values, torch.zeros(count, dtype=torch.int64))


def vectors(count: int = 4) -> Split:
    return Split(torch.zeros(count, 3, dtype=torch.float32))


def rows(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None]


def test_split_has_a_length() -> None:
    assert len(images(5)) == 5


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.float32, (4, 1, 2, 2)),
        (torch.uint8, (4, 3)),
        (torch.float64, (4, 3)),
        (torch.float32, (4,)),
    ],
)
def test_split_refuses_other_values(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="allowed are images"):
        Split(torch.zeros(shape, dtype=dtype))


def test_split_refuses_to_be_empty() -> None:
    with pytest.raises(ValueError, match="empty"):
        Split(torch.zeros(0, 3, dtype=torch.float32))


@pytest.mark.parametrize("labels", [torch.zeros(3).long(), torch.zeros(4).int()])
def test_split_refuses_labels_that_do_not_fit(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="need torch.int64"):
        Split(torch.zeros(4, 3, dtype=torch.float32), labels)


def test_dataset_has_an_event_shape() -> None:
    split = images()
    assert Dataset("a", split, split, split, levels=256, classes=("b",)).shape == (1, 2, 2)
    split = vectors()
    assert Dataset("a", split, split, split, levels=None, classes=()).shape == (3,)


def test_dataset_refuses_splits_of_another_kind() -> None:
    with pytest.raises(ValueError, match="test holds torch.uint8 events of shape"):
        Dataset("a", images(), images(), images(side=3), levels=256, classes=("b",))


def test_dataset_refuses_wrong_levels() -> None:
    split = images()
    with pytest.raises(ValueError, match="levels=None"):
        Dataset("a", split, split, split, levels=None, classes=("b",))
    split.values.fill_(17)
    with pytest.raises(ValueError, match="pixel value 17; levels=17 allows 0 to 16"):
        Dataset("a", split, split, split, levels=17, classes=("b",))


def test_dataset_refuses_wrong_classes() -> None:
    split = images()
    with pytest.raises(ValueError, match="train has labels, but"):
        Dataset("a", split, split, split, levels=256, classes=())
    with pytest.raises(ValueError, match="train has no labels"):
        Dataset("a", vectors(), vectors(), vectors(), levels=None, classes=("b",))
    assert split.labels is not None
    split.labels[1] = 2
    with pytest.raises(ValueError, match="labels from 0 to 2"):
        Dataset("a", split, split, split, levels=256, classes=("b", "c"))


def test_dataset_refuses_wrong_columns() -> None:
    split = vectors()
    with pytest.raises(ValueError, match="2 column names"):
        Dataset("a", split, split, split, levels=None, classes=(), columns=("x", "y"))


@pytest.mark.parametrize(("part", "size"), [(1, 1), (10, 10), (0.25, 2), (0.01, 1), (0.5, 5)])
def test_part_size(part: int | float, size: int) -> None:
    assert part_size(part, 10, name="test") == size


@pytest.mark.parametrize("part", [0, -1, 11, 0.0, 1.0, True, "3", float("nan")])
def test_part_size_refuses(part: int | float) -> None:
    with pytest.raises(ValueError, match="validation=.*count from 1 to 10 or a fraction"):
        part_size(part, 10, name="validation")


def test_hold_out_is_disjoint_and_covers() -> None:
    rest, held = hold_out(rows(20), torch.arange(20), count=6, seed=3)
    assert (len(rest), len(held)) == (14, 6)
    assert torch.cat([rest.values, held.values]).sort(0).values.equal(rows(20))
    for split in (rest, held):
        assert split.labels is not None
        assert split.values[:, 0].long().equal(split.labels)


def test_hold_out_follows_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = hold_out(rows(50), None, count=20, seed=1)[1].values
    state = torch.get_rng_state()
    again = hold_out(rows(50), None, count=20, seed=1)[1].values
    other = hold_out(rows(50), None, count=20, seed=2)[1].values
    assert first.equal(again) and not first.equal(other)
    assert state.equal(torch.get_rng_state())


@pytest.mark.parametrize("count", [0, 5, 6])
def test_hold_out_refuses_an_empty_part(count: int) -> None:
    with pytest.raises(ValueError, match="allowed is 1 to 4"):
        hold_out(rows(5), None, count=count, seed=0)


def test_split_in_three_is_disjoint_and_covers() -> None:
    parts = split_in_three(rows(30), None, validation=0.1, test=5, seed=0)
    assert [len(part) for part in parts] == [22, 3, 5]
    assert torch.cat([part.values for part in parts]).sort(0).values.equal(rows(30))


def test_split_in_three_of_three() -> None:
    parts = split_in_three(rows(3), None, validation=0.1, test=0.1, seed=0)
    assert [len(part) for part in parts] == [1, 1, 1]


def test_split_in_three_leaves_something_to_train_on() -> None:
    with pytest.raises(ValueError, match="leaves none of 30"):
        split_in_three(rows(30), None, validation=0.5, test=15, seed=0)


def test_resolve_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRESFLOW_DATA", "from_environment")
    assert resolve_root("given") == Path("given")
    assert resolve_root(None) == Path("from_environment")
    monkeypatch.delenv("IRESFLOW_DATA")
    assert resolve_root(None) == Path("data")


def test_unknown_name_gives_the_nearest_and_all() -> None:
    assert "did you mean 'cifar10'? Known are mnist, cifar10" in str(
        unknown_name("CIFAR_10", ("mnist", "cifar10"))
    )
    assert "did you mean" not in str(unknown_name("xyzzy", ("mnist", "cifar10")))


def test_contexts_are_checked() -> None:
    values = torch.zeros(4, 3, dtype=torch.float32)
    for contexts in (
        torch.zeros(3, 2).float(),
        torch.zeros(4).float(),
        torch.zeros(4, 2).double(),
    ):
        with pytest.raises(ValueError, match=r"need torch.float32 \(4, C\)"):
            Split(values, contexts=contexts)
    split = Split(values, contexts=torch.zeros(4, 2, dtype=torch.float32))
    with pytest.raises(
        ValueError, match="train has contexts of 2 columns; allowed are those named"
    ):
        Dataset("a", split, split, split, levels=None, classes=())
    dataset = Dataset("a", split, split, split, levels=None, classes=(), contexts=("t", "u"))
    assert dataset.contexts == ("t", "u")


def test_scaling_and_its_inverse() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2)) * [1e-3, 1e3] + [5.0, 1.7e9]
    scaling = Scaling.of(rows)
    scaled = scaling(rows)
    assert scaled.dtype == torch.float32
    expected = (rows - rows.mean(0)) / rows.std(0)
    assert np.abs(scaled.numpy() - expected).max() < 1e-6
    assert np.abs((scaling.undo(scaled) - rows) / rows.std(0)).max() < 1e-6
    with pytest.raises(ValueError, match="for a scaling of 2 columns"):
        scaling(rows[:, :1])
