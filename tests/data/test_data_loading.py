"""The one entry finds every set by its name, and refuses arguments of the other kind."""

from pathlib import Path

import pytest
from PIL import Image

from iresflow.data import IMAGE_NAMES, VECTOR_NAMES, load_dataset


def test_names_are_distinct() -> None:
    assert len({*IMAGE_NAMES, *VECTOR_NAMES}) == len(IMAGE_NAMES) + len(VECTOR_NAMES)


def test_images_and_vectors_are_found(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (5, 5), 100 + number).save(tmp_path / f"{number}.png")
    assert load_dataset("digits", validation=100).shape == (1, 8, 8)
    assert load_dataset("folder", tmp_path, size=4, channels=1).shape == (1, 4, 4)
    assert len(load_dataset("two-moons", count=100, test=20).test) == 20


def test_unknown_name_gives_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match="unknown data set 'twomoons': did you mean") as caught:
        load_dataset("twomoons")
    assert all(name in str(caught.value) for name in (*IMAGE_NAMES, *VECTOR_NAMES))


@pytest.mark.parametrize(
    ("name", "argument"), [("digits", "count"), ("rings", "size"), ("rings", "channels")]
)
def test_arguments_of_the_other_kind_are_refused(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}=3"):
        load_dataset(name, **{argument: 3})


@pytest.mark.parametrize("name", ["digits", "two-moons"])
def test_files_that_are_not_read_are_named(name, tmp_path):
    with pytest.warns(UserWarning, match=f"{name} needs no files, so those in {tmp_path} are not"):
        load_dataset(name, tmp_path)
