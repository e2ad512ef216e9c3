"""Each real file below a directory once, and nothing that waits or runs a program."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iresflow.data.folder import load_folder
from iresflow.data.images.pixels import read_image
from iresflow.data.images.walk import find_images


def fill(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (100, number, 0)).save(root / name)


def paths(root: Path) -> list[str]:
    return find_images(root).files


@pytest.mark.parametrize("count", [2, 3, 20])
def test_directories_that_link_to_each_other(tmp_path: Path, count: int) -> None:
    names = [f"class{number:02d}" for number in range(count)]
    fill(tmp_path, *(f"{name}/{image}.png" for name in names for image in range(2)))
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / f"to_{other}").symlink_to(f"../{other}")
    assert paths(tmp_path) == [f"{name}/{image}.png" for name in names for image in range(2)]
    dataset = load_folder(tmp_path, 4)
    assert dataset.classes == tuple(names)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 2 * count


def test_a_linked_file_counts_once_and_by_its_own_path(tmp_path: Path) -> None:
    fill(tmp_path, "z/0.png", "z/1.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link.png").symlink_to("../z/0.png")
    (tmp_path / "a" / "again.png").symlink_to("link.png")
    assert paths(tmp_path) == ["z/0.png", "z/1.png"]


def test_links_out_of_the_directory_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "0.png", "deep/1.png")
    (tmp_path / "root").mkdir()
    for name in ("first", "second"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "file.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert paths(tmp_path / "root") == ["first/0.png", "first/deep/1.png"]


def test_a_link_to_itself_and_a_link_to_nothing(tmp_path: Path) -> None:
    fill(tmp_path, "0.png")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "nothing.png").symlink_to("nowhere.png")
    found = find_images(tmp_path)
    assert found.files == ["0.png"]
    assert found.passed_over == ["nothing.png (a link to nothing)"]


def test_a_pipe_is_passed_over_and_named(tmp_path: Path) -> None:
    fill(tmp_path, "0.png", "1.png", "2.png")
    os.mkfifo(tmp_path / "x.png")
    with pytest.warns(UserWarning, match=r"passed over 1 in .*x\.png \(no regular file\)"):
        assert len(load_folder(tmp_path, 4).train) == 1


@pytest.mark.parametrize("extension", ["eps", "ps"])
def test_formats_of_ghostscript_are_passed_over_and_named(tmp_path: Path, extension: str) -> None:
    fill(tmp_path, "0.png", "1.png", "2.png")
    Image.new("L", (4, 4)).save(tmp_path / f"x.{extension}", format="EPS")
    with pytest.warns(UserWarning, match=rf"x\.{extension} \(this format needs Ghostscript\)"):
        load_folder(tmp_path, 4)


def test_ghostscript_is_not_run_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it ran"))
    Image.new("L", (4, 4)).save(tmp_path / "x.png", format="EPS")
    with pytest.raises(OSError, match="cannot identify"):
        read_image(tmp_path / "x.png", 4)


def test_a_directory_that_can_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "0.png", "closed/1.png")
    scan = os.scandir

    def refuse(folder: Path) -> object:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images(tmp_path)
    assert found.files == ["0.png"]
    assert found.passed_over == ["closed (Permission denied)"]


def noise(top: int, dtype: type, count: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, top + 1, (8, 8)).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize(
    ("bits", "dtype", "extension"),
    [
        (12, np.uint16, "png"),
        (10, np.uint16, "tif"),
        (14, np.uint16, "png"),
        (8, np.uint16, "png"),
        (8, np.int32, "tif"),
        (12, np.int32, "tif"),
    ],
)
def test_the_range_of_values_is_that_of_the_whole_set(
    tmp_path: Path, bits: int, dtype: type, extension: str
) -> None:
    images = noise((1 << bits) - 1, dtype)
    images[0][:] = 1 << bits - 2  # which alone would be of fewer bits
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.{extension}")
    with pytest.warns(UserWarning, match=f"read as images of {bits} bits"):
        dataset = load_folder(tmp_path, 8, channels=1)
    parts = [dataset.train, dataset.validation, dataset.test]
    read = {part.values[i].numpy().tobytes() for part in parts for i in range(len(part))}
    assert read == {(image.astype(int) >> bits - 8).astype(np.uint8).tobytes() for image in images}
    assert dataset.fingerprint and dataset.fingerprint.reading == f"images of {bits} bits"


def test_a_range_that_is_asked_for(tmp_path: Path) -> None:
    for number, image in enumerate(noise(1023, np.uint16)):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    assert int(load_folder(tmp_path, 8, channels=1, bits=12).train.values.max()) == 1023 >> 4
    with pytest.raises(ValueError, match="bits=11; allowed are 8, 10, 12, 14, 16"):
        load_folder(tmp_path, 8, channels=1, bits=11)


def test_values_beyond_the_range_that_is_asked_for_are_named(tmp_path: Path) -> None:
    for number, image in enumerate(noise(200, np.uint16)):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "x.png")
    with pytest.warns(UserWarning, match=r"x\.png \(ValueError: .* more than 8 bits"):
        load_folder(tmp_path, 8, channels=1, bits=8)


def test_sixteen_bits_need_no_word(tmp_path: Path) -> None:
    for number, image in enumerate(noise(65535, np.uint16)):
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    assert int(load_folder(tmp_path, 8, channels=1).train.values.max()) > 250


@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_that_is_nearly_black_is_pointed_out(tmp_path: Path, channels: int) -> None:
    # As Pillow reads 12 bits of colour in 16: by the upper 8.
    for number, image in enumerate(noise(15, np.uint8)):
        Image.fromarray(np.stack([image, image.T, image], -1)).save(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match="nearly black: no value of a pixel is above 15"):
        load_folder(tmp_path, 8, channels=channels)
