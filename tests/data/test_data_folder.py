"""Folders of images: what is found, how it is decoded, how it is split, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iresflow.data import load_images
from iresflow.data.cuts import ByHash
from iresflow.data.folder import load_folder
from iresflow.data.images.pixels import read_image
from iresflow.errors import DataError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def fill(root: Path, names: list[str], *, side: int = 6) -> None:
    """Images of one colour each, by which the file can be told."""
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (number, 100, 200)).save(file)


def names(count: int, *, folder: str = "") -> list[str]:
    return [os.path.join(folder, f"{number:03d}.png") for number in range(count)]


def test_folder_is_split_disjointly_and_completely(tmp_path: Path) -> None:
    fill(tmp_path, names(20))
    dataset = load_folder(tmp_path, 4, validation=3, test=4)
    parts = [dataset.train, dataset.validation, dataset.test]
    assert [len(part) for part in parts] == [13, 3, 4]
    assert sorted(int(image[0, 0, 0]) for part in parts for image in part.values) == [*range(20)]
    assert (dataset.shape, dataset.levels, dataset.classes) == ((3, 4, 4), 256, ())
    assert dataset.train.labels is None


def test_split_follows_seed_and_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "a", names(12, folder="x") + names(12, folder="y"))
    first = load_folder(tmp_path / "a", 4, cut=ByHash(1))
    (tmp_path / "a").rename(tmp_path / "b")
    scan = os.scandir

    class Backwards:
        def __init__(self, folder: Path) -> None:
            self.entries = scan(folder)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return sorted(self.entries, key=lambda entry: entry.name, reverse=True)

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    monkeypatch.setattr(os, "scandir", Backwards)
    again, other = (load_folder(tmp_path / "b", 4, cut=ByHash(seed)) for seed in (1, 2))
    assert first.train.values.equal(again.train.values)
    assert first.test.values.equal(again.test.values)
    assert not first.train.values.equal(other.train.values)
    assert first.test.values.equal(other.test.values)


def test_classes_are_subfolders_of_the_first_level(tmp_path: Path) -> None:
    fill(tmp_path, ["dog/0.png", "cat/1.png", "cat/deep/2.jpeg", "dog/3.PNG", ".hid/4.png"])
    dataset = load_folder(tmp_path, 6)
    assert dataset.classes == ("cat", "dog")
    found = {}
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.labels is not None
        for image, label in zip(part.values, part.labels, strict=True):
            found[int(image[0, 0, 0])] = int(label)
    assert found == {0: 1, 1: 0, 2: 0, 3: 1}


def test_loose_images_beside_subfolders_have_no_labels(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png", "b.png", "dog/c.png"])
    with pytest.warns(UserWarning, match="2 images are in no subfolder and 1 in 1"):
        dataset = load_folder(tmp_path, 6)
    assert dataset.classes == () and dataset.train.labels is None


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, names(3))
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "._000.png").write_bytes(b"a resource fork")
    assert len(load_folder(tmp_path, 6).train) == 1


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", names(4))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    dataset = load_folder(tmp_path / "root", 6)
    assert dataset.classes == ("linked",)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 4


def test_corrupt_images_are_skipped_with_one_warning(tmp_path: Path) -> None:
    fill(tmp_path, names(5))
    for number in range(7):
        (tmp_path / f"bad{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "empty.jpg").touch()
    with pytest.warns(UserWarning, match="skipped 8 of 13 image files") as caught:
        dataset = load_images("folder", tmp_path, size=4)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert all(f"bad{number}.png" in message for number in range(5))
    assert "bad5.png" not in message and "and 3 more" in message
    parts = [dataset.train, dataset.validation, dataset.test]
    assert sorted(int(image[0, 0, 0]) for part in parts for image in part.values) == [*range(5)]


def test_what_is_said_of_a_corrupt_image_names_its_file(tmp_path: Path) -> None:
    fill(tmp_path, names(6))
    (tmp_path / "words.png").write_text("no image")
    with pytest.warns(UserWarning, match="skipped 1 of 7") as caught:
        load_folder(tmp_path, 4)
    said = str(caught[0].message)
    assert "cannot identify image file words.png" in said and "0x" not in said


def test_truncated_jpeg_is_skipped(tmp_path: Path) -> None:
    for number in range(4):
        noise = np.random.default_rng(number).integers(256, size=(64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.jpg")
    content = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=r"skipped 1 of 4.*2\.jpg \(OSError: .*truncated"):
        assert len(load_folder(tmp_path, 16).train) == 1


def test_grey_images_read_in_colour_are_pointed_out(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (5, 5), 100 + number).save(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match="are grey; with channels=1"):
        load_folder(tmp_path, 4)
    assert load_folder(tmp_path, 4, channels=1).shape == (1, 4, 4)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist; a directory of images"):
        load_folder(tmp_path / "nowhere", 8)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a directory"):
        load_folder(tmp_path / "file", 8)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no image is in .*\.png, \.jpg"):
        load_folder(tmp_path, 8)


def test_folder_without_a_readable_image(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"0 readable images of 4 .*Not readable: 0\.png"):
        load_folder(tmp_path, 8)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images(tmp_path: Path, count: int) -> None:
    fill(tmp_path, names(count))
    with pytest.raises(DataError, match=f"{count} image files.*at least 3"):
        load_folder(tmp_path, 8)


def test_three_images_are_enough(tmp_path: Path) -> None:
    fill(tmp_path, names(3))
    dataset = load_folder(tmp_path, 8)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [1, 1, 1]


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2)])
def test_wrong_size_or_channels(tmp_path: Path, size: int, channels: int) -> None:
    with pytest.raises(ValueError, match=f"size={size} and channels={channels}"):
        load_folder(tmp_path, size, channels=channels)


def test_nothing_is_printed_away_from_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, names(3))
    load_folder(tmp_path, 8)
    assert capfd.readouterr() == ("", "")


def save(file: Path, image: Image.Image, **options: object) -> Path:
    image.save(file, **options)
    return file


def test_image_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(256, size=(8, 8, 3)).astype(np.uint8)
    file = save(tmp_path / "a.png", Image.fromarray(values))
    assert np.array_equal(read_image(file, 8), values.transpose(2, 0, 1))


@pytest.mark.parametrize("upright", [True, False])
def test_the_middle_is_kept(tmp_path: Path, upright: bool) -> None:
    values = np.zeros((40, 20, 3), np.uint8)
    values[:8], values[8:32], values[32:] = RED, GREEN, BLUE
    values = values if upright else values.transpose(1, 0, 2)
    image = read_image(save(tmp_path / "a.png", Image.fromarray(values)), 5)
    assert image.shape == (3, 5, 5)
    assert np.abs(image.astype(int) - np.reshape(GREEN, (3, 1, 1))).max() <= 12


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    file = save(tmp_path / "a.png", Image.fromarray(board.astype(np.uint8)))
    image = read_image(file, 8, channels=1)
    assert image.shape == (1, 8, 8) and np.abs(image.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2)])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    assert read_image(save(tmp_path / "a.png", Image.new("RGB", shape)), 8).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        file = save(tmp_path / "a.png", image, transparency=0)
    else:
        file = save(tmp_path / "a.png", clear.convert(mode))
    assert (read_image(file, 4) == 255).all()
    assert (read_image(file, 4, channels=1) == 255).all()


def test_palette_image_has_its_colours(tmp_path: Path) -> None:
    file = save(tmp_path / "a.gif", Image.new("RGB", (8, 8), BLUE).convert("P"))
    assert (read_image(file, 4) == np.reshape(BLUE, (3, 1, 1))).all()


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bits_become_eight(tmp_path: Path, extension: str) -> None:
    values = np.full((8, 8), 0x80FF, np.uint16)
    file = save(tmp_path / f"a.{extension}", Image.fromarray(values))
    assert (read_image(file, 4, channels=1) == 0x80).all()


def test_values_without_an_agreed_range_are_unreadable(tmp_path: Path) -> None:
    file = save(tmp_path / "a.tif", Image.fromarray(np.zeros((8, 8), np.float32)))
    with pytest.raises(ValueError, match="floating-point"):
        read_image(file, 4)
    file = save(tmp_path / "b.tif", Image.fromarray(np.full((8, 8), 1 << 20, np.int32)))
    with pytest.raises(ValueError, match="more than 16 bits"):
        read_image(file, 4)


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "L"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (8, 8), WHITE).convert(mode)
    file = save(tmp_path / ("a.png" if mode in "1L" else "a.tif"), image)
    assert (read_image(file, 4) >= 254).all()


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    values = np.zeros((64, 64, 3), np.uint8)
    values[:32], values[32:] = WHITE, BLUE
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    file = save(tmp_path / "a.jpg", Image.fromarray(values), exif=exif, quality=95)
    image = read_image(file, 4).astype(int)
    assert np.abs(image[:, 3] - 255).max() < 20 and np.abs(image[0, 0]).max() < 20
