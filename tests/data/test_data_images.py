"""Digits, the arguments of every image set, and the real MNIST where it is at hand."""

import os
from pathlib import Path

import pytest
import torch

from iresflow.data import Dataset, load_images
from iresflow.data.base import Split
from iresflow.data.images.named import _resized

MNIST_RAW = Path(os.environ.get("IRESFLOW_DATA", ""), "MNIST", "raw")
needs_mnist = pytest.mark.skipif(
    not (os.environ.get("IRESFLOW_DATA") and len(list(MNIST_RAW.glob("*-ubyte"))) >= 4),
    reason="IRESFLOW_DATA is not set to a directory with MNIST/raw",
)


def rows_of(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.values]


def all_rows(dataset: Dataset) -> list[bytes]:
    return [
        row for name in ("train", "validation", "test") for row in rows_of(getattr(dataset, name))
    ]


def test_digits_have_17_levels() -> None:
    digits = load_images("digits")
    assert (digits.shape, digits.levels, digits.columns) == ((1, 8, 8), 17, ())
    assert digits.classes == tuple("0123456789")
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1257, 180, 360]
    assert int(digits.train.values.min()) == 0 and int(digits.train.values.max()) == 16
    for split in (digits.train, digits.validation, digits.test):
        assert split.labels is not None
        assert split.labels.unique().tolist() == list(range(10))


def test_digits_follow_the_seed_except_for_the_test_part() -> None:
    first, again, other = (load_images("digits", seed=seed) for seed in (1, 1, 2))
    assert first.train.values.equal(again.train.values)
    assert not first.validation.values.equal(other.validation.values)
    assert first.test.values.equal(other.test.values)
    assert sorted(all_rows(first)) == sorted(all_rows(other))


def test_digits_take_part_sizes() -> None:
    digits = load_images("digits", validation=0.5, test=797, size=8, channels=1)
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [500, 500, 797]


def test_digits_refuse_another_size() -> None:
    with pytest.raises(ValueError, match="size=16; digits are 8x8"):
        load_images("digits", size=16)


@pytest.mark.parametrize(("name", "channels"), [("digits", 3), ("mnist", 3), ("cifar10", 1)])
def test_channels_must_be_those_of_the_set(name: str, channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels={channels}; {name} has {4 - channels}"):
        load_images(name, "nowhere", channels=channels)


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="size=0"):
        load_images("mnist", "nowhere", size=0)


@pytest.mark.parametrize(("root", "size"), [(None, 32), ("somewhere", None)])
def test_folder_needs_root_and_size(root: str | None, size: int | None) -> None:
    with pytest.raises(ValueError, match="'folder' got root=.*it needs both"):
        load_images("folder", root, size=size)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'fashion-mnist'"):
        load_images("fashion_mnist")


@pytest.mark.parametrize(("channels", "size"), [(1, 3), (3, 14), (3, 9)])
def test_resized_keeps_a_constant(channels: int, size: int) -> None:
    images = torch.full((2, channels, 7, 7), 201, dtype=torch.uint8)
    expected = torch.full((2, channels, size, size), 201, dtype=torch.uint8)
    assert _resized(images, size).equal(expected)


@needs_mnist
def test_mnist_is_the_official_one() -> None:
    mnist = load_images("mnist", validation=1000)
    assert [len(s) for s in (mnist.train, mnist.validation, mnist.test)] == [59000, 1000, 10000]
    assert (mnist.shape, mnist.levels) == ((1, 28, 28), 256)
    assert mnist.test.labels is not None
    assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.train.values.double().mean().item() == pytest.approx(33.32, abs=0.1)
