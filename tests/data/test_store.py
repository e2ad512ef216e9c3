"""Images mapped from a cache are those in memory, and what is got ready ahead keeps its order."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iresflow.data import Dataset
from iresflow.data.ahead import ahead
from iresflow.data.folder import load_folder
from iresflow.data.images.decode import Decoder
from iresflow.data.images.store import MemoryMapped


def fill(root: Path, count: int = 30) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def assert_equal(first: Dataset, second: Dataset) -> None:
    for part in ("train", "validation", "test"):
        one, other = getattr(first, part), getattr(second, part)
        assert one.values.equal(other.values) and one.labels.equal(other.labels)
    assert first.fingerprint and second.fingerprint
    assert not first.fingerprint.changes_to(second.fingerprint)


@pytest.mark.filterwarnings("ignore:skipped 2 of")
@pytest.mark.parametrize("broken", [False, True])
def test_a_cache_gives_what_memory_gives(
    tmp_path: Path, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "images")
    if broken:
        for name in ("05a.png", "29a.png"):
            (tmp_path / "images" / "class1" / name).write_bytes(b"nothing")
    inside = load_folder(tmp_path / "images", 8)
    store = MemoryMapped(tmp_path / "cache")
    assert_equal(inside, load_folder(tmp_path / "images", 8, store=store))
    monkeypatch.setattr(Decoder, "decode", lambda *_: pytest.fail("decoded once more"))
    again = load_folder(tmp_path / "images", 8, store=store)
    assert_equal(inside, again)
    again.train.values.zero_()  # stays in this process
    assert_equal(inside, load_folder(tmp_path / "images", 8, store=store))


@pytest.mark.parametrize("change", ["file", "size", "added"])
def test_a_cache_of_other_images_is_not_used(tmp_path: Path, change: str) -> None:
    fill(tmp_path / "images")
    store = MemoryMapped(tmp_path / "cache")
    load_folder(tmp_path / "images", 8, store=store)
    file = tmp_path / "images" / "class0" / "00.png"
    if change == "file":
        before = file.stat().st_mtime_ns
        Image.new("RGB", (9, 11), (200, 3, 3)).save(file)
        os.utime(file, ns=(before, before + 1))
    elif change == "added":
        Image.new("RGB", (9, 11), (200, 3, 3)).save(file.with_name("x.png"))
    size = 4 if change == "size" else 8
    stored = load_folder(tmp_path / "images", size, store=store)
    assert_equal(load_folder(tmp_path / "images", size), stored)


def test_a_decoding_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "images")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        load_folder(tmp_path / "images", 8, store=MemoryMapped(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


MEASURE = """
import sys
from pathlib import Path
from iresflow.data.folder import load_folder
from iresflow.data.images.store import MemoryMapped

def anonymous():  # bytes of this process that belong to no file
    return 1024 * int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

here, size = Path(sys.argv[1]), 256  # 60 MB of pixels
load_folder(here / "images", 8, store=MemoryMapped(here / "cache"))
before = anonymous()
dataset = load_folder(here / "images", size, store=MemoryMapped(here / "cache"))
mapped = anonymous() - before
kept = load_folder(here / "images", size)
print(mapped, anonymous() - before - mapped)
assert dataset.train.values.nbytes > 40e6
assert kept.train.values.equal(dataset.train.values)
"""
"""In a process of its own, where no other test's memory comes and goes."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' accounts")
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    fill(tmp_path / "images", 3)
    for number in range(300):
        source = tmp_path / "images" / "class0" / "00.png"
        (source.parent / f"copy{number}.png").write_bytes(
            source.read_bytes() + str(number).encode()
        )
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    mapped, in_memory = map(int, found.stdout.split())
    assert mapped < 15e6 < 40e6 < in_memory


def test_items_keep_their_order() -> None:
    assert list(ahead(range(100), 3)) == list(range(100))
    assert list(itertools.islice(ahead(itertools.count()), 5)) == [0, 1, 2, 3, 4]


def test_items_are_made_meanwhile() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    stream = ahead(items(), 2)
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 3 <= len(made) <= 4
    stream.close()


def test_an_error_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_the_thread_ends_with_its_reader() -> None:
    before = threading.active_count()
    stream = ahead(itertools.count(), 1)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="depth=0"):
        ahead([], 0)
