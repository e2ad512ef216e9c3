"""Directories named for splits are the splits."""

from pathlib import Path

import pytest
from PIL import Image

from iresflow.data import Dataset, Split
from iresflow.data.cuts import ByShuffle
from iresflow.data.folder import load_folder
from iresflow.errors import DataError


def fill(root: Path, *folders: str, count: int = 6) -> dict[str, set[int]]:
    """Images of one grey value each, all of them different; the values in each folder."""
    values: dict[str, set[int]] = {}
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            value = 40 + place * count + number
            Image.new("RGB", (4, 4), (value, 0, 99)).save(root / folder / f"{number}.png")
            values.setdefault(folder.split("/")[0], set()).add(value)
    return values


def values_of(split: Split) -> set[int]:
    return {int(image[0, 0, 0]) for image in split.values}


def all_of(dataset: Dataset) -> list[set[int]]:
    return [values_of(split) for split in (dataset.train, dataset.validation, dataset.test)]


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_three_directories_are_three_splits(tmp_path: Path, validation: str) -> None:
    folders = [f"{s}/{c}" for s in ("train", validation, "test") for c in ("cat", "dog")]
    values = fill(tmp_path, *folders)
    dataset = load_folder(tmp_path, 4)
    assert all_of(dataset) == [values["train"], values[validation], values["test"]]
    assert dataset.classes == ("cat", "dog")
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.labels is not None and split.labels.bincount().tolist() == [6, 6]
    assert f"validation from {validation}/" in dataset.origin


def test_a_missing_split_is_cut_from_train(tmp_path: Path) -> None:
    values = fill(tmp_path, "train", "test", count=10)
    dataset = load_folder(tmp_path, 4, validation=3)
    train, validated, tested = all_of(dataset)
    assert tested == values["test"] and len(validated) == 3
    assert train | validated == values["train"] and not train & validated
    assert "test from test/, validation cut from train by a hash" in dataset.origin
    assert dataset.classes == ()


def test_a_class_that_is_not_trained_on_is_told(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", "test/cat", "test/owl")
    with pytest.warns(UserWarning, match="no image of owl is in the train directory"):
        dataset = load_folder(tmp_path, 4)
    assert dataset.classes == ("cat", "dog", "owl")


def test_train_alone_is_no_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog")
    dataset = load_folder(tmp_path, 4)
    assert dataset.classes == ("cat", "dog") and "validation cut from train" in dataset.origin


def test_train_among_other_classes_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "train", "car", "plane")
    assert load_folder(tmp_path, 4).classes == ("car", "plane", "train")


def test_images_beside_the_splits_are_named(tmp_path: Path) -> None:
    values = fill(tmp_path, "train", "test", "unlabelled")
    with pytest.warns(UserWarning, match="6 images in unlabelled/ are not used"):
        dataset = load_folder(tmp_path, 4)
    assert set.union(*all_of(dataset)) == values["train"] | values["test"]


def test_two_directories_of_one_split(tmp_path: Path) -> None:
    fill(tmp_path, "train", "val", "validation")
    with pytest.raises(DataError, match="val, validation, which are the same split"):
        load_folder(tmp_path, 4)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    fill(tmp_path, "val", "test")
    with pytest.raises(DataError, match="no images to train on"):
        load_folder(tmp_path, 4)


def test_a_size_for_a_split_that_is_there(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    with pytest.raises(ValueError, match="test=3, but the data have a test part of their own"):
        load_folder(tmp_path, 4, test=3)


def test_a_split_without_a_readable_image(tmp_path: Path) -> None:
    fill(tmp_path, "train")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.png").write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match=r"skipped 1 of 7.*test/a\.png"),
        pytest.raises(DataError, match="no image in the directory of the test split"),
    ):
        load_folder(tmp_path, 4)


def test_runs_of_version_0_1_had_them_as_classes(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    assert load_folder(tmp_path, 4, cut=ByShuffle()).classes == ("test", "train")


def test_growth_moves_no_image(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", count=40)
    before = all_of(load_folder(tmp_path, 4))
    Image.new("RGB", (4, 4), (200, 0, 99)).save(tmp_path / "a" / "000.png")
    after = all_of(load_folder(tmp_path, 4))
    assert [old - new for old, new in zip(before, after, strict=True)] == [set()] * 3
    assert set.union(*after) - set.union(*before) == {200}


def test_an_image_in_two_splits_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "train", "test")
    copy = tmp_path / "test" / "copy.png"
    copy.write_bytes((tmp_path / "train" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match=r"1 images of the test split .*: test/copy\.png"):
        load_folder(tmp_path, 4, validation=1)


def test_accents_are_one_name_however_they_are_written(tmp_path: Path) -> None:
    names = ["caf\u00e9", "cafe\u0301"]
    datasets = []
    for place, name in enumerate(names):
        fill(tmp_path / str(place), name, "b", count=30)
        datasets.append(load_folder(tmp_path / str(place), 4))
    assert all_of(datasets[0])[2] == all_of(datasets[1])[2]
    assert datasets[0].fingerprint and datasets[1].fingerprint
    assert not datasets[0].fingerprint.changes_to(datasets[1].fingerprint)
