"""Fingerprints tell what happened to each sample, and survive a file."""

import json

import numpy as np
import pytest
import torch

from iresflow.data import load_dataset
from iresflow.data.cuts import Parts
from iresflow.data.fingerprint import Fingerprint, row_keys


def prints(
    train: dict[str, str], test: dict[str, str], *, reading: str = "", named: bool = True
) -> Fingerprint:
    """Of samples by name and content, with one of validation."""
    samples = {**train, "v": "validation", **test}
    ends = np.cumsum([0, len(train), 1, len(test)])
    parts = Parts(*(np.arange(a, b) for a, b in zip(ends, ends[1:], strict=False)))
    contents = [content.encode() for content in samples.values()]
    return Fingerprint.of_samples(contents, list(samples) if named else [], parts, reading)


THEN = prints({"a": "1", "b": "2"}, {"c": "3"})


def test_nothing_has_changed() -> None:
    changes = THEN.changes_to(prints({"b": "2", "a": "1"}, {"c": "3"}))
    assert not changes and str(changes) == "nothing has changed"


def test_added_removed_and_changed_are_told_by_name() -> None:
    changes = THEN.changes_to(prints({"b": "other", "d": "4"}, {"c": "3", "e": "5"}))
    assert changes.touch("train") and changes.touch("test") and not changes.touch("validation")
    told = str(changes)
    assert "1 changed in train (b)" in told and "1 added in train (d)" in told
    assert "1 removed in train" in told and "1 added in test (e)" in told


@pytest.mark.parametrize("now", [{"a": "1", "c": "3"}, {"another name": "1", "c": "3"}])
def test_a_move_is_told_even_under_another_name(now: dict[str, str]) -> None:
    changes = THEN.changes_to(prints({"b": "2"}, now))
    assert changes.moved("train", "test") == 1 and changes.moved("test", "train") == 0
    assert "1 moved from train to test" in str(changes)


def test_a_copy_of_a_sample_has_not_moved() -> None:
    changes = THEN.changes_to(prints({"a": "1", "b": "2"}, {"c": "3", "copy": "1"}))
    assert changes.moved("train", "test") == 0 and "1 added in test (copy)" in str(changes)


def test_samples_without_names_are_known_by_content() -> None:
    then = prints({"a": "1", "b": "2"}, {"c": "3"}, named=False)
    now = prints({"x": "2", "y": "3"}, {"z": "1"}, named=False)
    changes = then.changes_to(now)
    assert changes.moved("train", "test") == 1 and changes.moved("test", "train") == 1
    assert str(changes).count("1 moved") == 2 and "added" not in str(changes)


def test_another_reading_touches_all_splits() -> None:
    changes = THEN.changes_to(prints({"a": "1", "b": "2"}, {"c": "3"}, reading="12 bits"))
    assert all(changes.touch(part) for part in ("train", "validation", "test"))
    assert "now as 12 bits" in str(changes)


@pytest.mark.parametrize("named", [True, False])
def test_a_file_keeps_it(named: bool) -> None:
    then = prints({"a": "1", "b": "2"}, {"c": "3"}, named=named, reading="r")
    again = Fingerprint.from_dict(json.loads(json.dumps(then.to_dict())))
    now = prints({"b": "2"}, {"c": "3", "a": "1"}, named=named, reading="r")
    assert not again.changes_to(then)
    assert str(again.changes_to(now)) == str(then.changes_to(now))


def test_equal_rows_have_keys_of_their_own_that_growth_keeps() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    keys = row_keys(rows)
    assert len(set(keys)) == 3
    grown = row_keys(torch.cat([rows[1:], torch.ones(1, 2), rows[:1], rows[:1]]))
    assert set(keys) <= set(grown) and len(set(grown)) == 5


def test_built_in_sets_have_one() -> None:
    first, again, other = (load_dataset("digits", seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint and again.fingerprint and other.fingerprint
    assert not first.fingerprint.changes_to(again.fingerprint)
    changes = first.fingerprint.changes_to(other.fingerprint)
    assert changes.moved("train", "validation") > 100 and not changes.touch("test")
    assert load_dataset("rings", count=99).fingerprint is None
