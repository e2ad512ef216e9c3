"""Rules of splitting: who is held out, how many, and that growth moves nobody."""

import numpy as np
import pytest
import torch

from iresflow.data.cuts import CUT_NAMES, ByHash, ByShuffle, ByTime, Parts, arrange, cut_named


def keys(count: int, first: int = 0) -> list[bytes]:
    return [f"image {number}.png".encode() for number in range(first, first + count)]


def split_of(parts: Parts) -> dict[int, str]:
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return {int(row): name for name, rows in named.items() for row in rows}


@pytest.mark.parametrize("name", CUT_NAMES)
@pytest.mark.parametrize("sizes", [(0.1, 0.1), (3, 4), (0.5, 1), (None, 0.2), (0.2, None)])
def test_every_rule_is_disjoint_and_complete(name: str, sizes: tuple) -> None:
    parts = cut_named(name, 1).cut(keys(50), validation=sizes[0], test=sizes[1])
    rows = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(rows.tolist()) == list(range(50))
    for size, part in zip(sizes, (parts.validation, parts.test), strict=True):
        assert len(part) == (0 if size is None else size) or isinstance(size, float)
        assert (len(part) > 0) == (size is not None)


@pytest.mark.parametrize("name", CUT_NAMES)
def test_three_samples_are_enough(name: str) -> None:
    for first in range(300):
        parts = cut_named(name, 0).cut(keys(3, first), validation=0.1, test=0.1)
        assert (len(parts.train), len(parts.validation), len(parts.test)) == (1, 1, 1)


def test_no_sample_moves_when_others_are_added() -> None:
    names = keys(2000)
    before = split_of(ByHash(3).cut(names[::2], validation=0.1, test=0.1))
    after = split_of(ByHash(3).cut(names, validation=0.1, test=0.1))
    assert all(after[2 * row] == part for row, part in before.items())
    # The control: what a permutation does to nine tenths of a test split.
    shuffled = [
        split_of(ByShuffle(3).cut(n, validation=0.1, test=0.1)) for n in (names[::2], names)
    ]
    moved = [row for row, part in shuffled[0].items() if shuffled[1][2 * row] != part]
    assert len(moved) > 100


def test_shares_are_those_asked_for() -> None:
    parts = ByHash(0).cut(keys(20_000), validation=0.2, test=0.3)
    for part, share in ((parts.validation, 0.2), (parts.test, 0.3)):
        assert abs(len(part) / 20_000 - share) < 4 * np.sqrt(share * (1 - share) / 20_000)


def test_the_test_split_does_not_depend_on_the_seed() -> None:
    first, other = (ByHash(seed).cut(keys(500), validation=0.1, test=0.1) for seed in (0, 1))
    assert first.test.tolist() == other.test.tolist()
    assert sorted(first.validation.tolist()) != sorted(other.validation.tolist())


def test_splits_come_in_an_order_of_their_own() -> None:
    test = ByHash(0).cut(keys(1000), validation=0.1, test=0.3).test
    assert np.abs(np.corrcoef(test, np.arange(len(test)))[0, 1]) < 4 / np.sqrt(len(test))


def test_time_holds_out_the_last() -> None:
    parts = ByTime().cut(keys(20), validation=3, test=0.2)
    assert sorted(parts.test.tolist()) == [16, 17, 18, 19]
    assert sorted(parts.validation.tolist()) == [13, 14, 15]


def test_shuffle_is_the_rule_of_version_0_1() -> None:
    first = torch.randperm(20, generator=torch.Generator().manual_seed(1)).numpy()
    rest = first[4:][torch.randperm(16, generator=torch.Generator().manual_seed(1)).numpy()]
    parts = ByShuffle(1).cut(keys(20), validation=3, test=0.2)
    assert parts.test.tolist() == first[:4].tolist()
    assert parts.validation.tolist() == rest[:3].tolist()
    assert parts.train.tolist() == rest[3:].tolist()


def test_given_parts_are_kept_and_missing_ones_cut_from_train() -> None:
    given = {"train": np.arange(5, 50), "test": np.arange(5)}
    parts = arrange(keys(50), given, ByHash(0), validation=None, test=None)
    assert sorted(parts.test.tolist()) == [0, 1, 2, 3, 4]
    held = sorted([*parts.train.tolist(), *parts.validation.tolist()])
    assert held == list(range(5, 50)) and len(parts.validation) >= 1


def test_a_given_part_can_not_be_cut_too() -> None:
    given = {"train": np.arange(5, 50), "test": np.arange(5)}
    with pytest.raises(ValueError, match=r"test=0\.2, but the data have a test part"):
        arrange(keys(50), given, ByHash(0), validation=None, test=0.2)


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="order='date'; allowed are hash, shuffle, time"):
        cut_named("date", 0)
