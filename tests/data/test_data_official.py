"""The official sets from small files of their own format, and every way the files can be bad."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from iresflow.data import load_images
from iresflow.errors import DataError

MNIST_FILES = [file.removesuffix(".gz") for file, _ in datasets.MNIST.resources]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + (
        values.astype(np.uint8).tobytes()
    )


def write_mnist(root: Path, name: str = "MNIST") -> Path:
    """30 training and 10 test images of 28x28 pixels."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 10)):
        images = rng.integers(256, size=(count, 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return raw


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, cls: type) -> Path:
    """20 images in each file, and torchvision told that their sums are the right ones."""
    folder = root / cls.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key = "labels" if cls is datasets.CIFAR10 else "fine_labels"

    def write(file: str, content: dict) -> str:
        data = pickle.dumps(content)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for part in ("train_list", "test_list"):
        sums = []
        for file, _ in getattr(cls, part):
            images = rng.integers(256, size=(20, 3072)).astype(np.uint8)
            sums.append([file, write(file, {"data": images, key: [i % 10 for i in range(20)]})])
        monkeypatch.setattr(cls, part, sums)
    names = {cls.meta["key"]: [f"class {i}" for i in range(10)]}
    meta = {**cls.meta, "md5": write(cls.meta["filename"], names)}
    monkeypatch.setattr(cls, "meta", meta)
    return folder


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_mnist_is_read_from_raw_files_alone(tmp_path: Path, name: str, folder: str) -> None:
    raw = write_mnist(tmp_path, folder)
    dataset = load_images(name, tmp_path, validation=5)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [25, 5, 10]
    assert dataset.test.labels is not None and dataset.test.labels.equal(torch.arange(10))
    content = (raw / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert dataset.test.values.numpy().tobytes() == content
    assert dataset.classes[0] == ("0" if name == "mnist" else "T-shirt/top")
    assert (dataset.shape, dataset.levels) == ((1, 28, 28), 256)


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("IRESFLOW_DATA", str(tmp_path))
    assert len(load_images("mnist", validation=5).train) == 25


def test_mnist_is_resized_and_cut(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    whole = load_images("mnist", tmp_path, validation=0.1)
    small = load_images("mnist", tmp_path, validation=0.1, size=14, test=4)
    assert small.shape == (1, 14, 14) and len(small.test) == 4
    assert whole.test.labels is not None and small.test.labels is not None
    assert small.test.labels.equal(whole.test.labels[:4])
    difference = small.test.values.double().mean() - whole.test.values[:4].double().mean()
    assert abs(difference.item()) < 2.0


def test_official_validation_follows_the_seed(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    first, again, other = (
        load_images("mnist", tmp_path, validation=15, seed=seed) for seed in (1, 1, 2)
    )
    assert first.validation.values.equal(again.validation.values)
    assert not first.validation.values.equal(other.validation.values)
    assert first.test.values.equal(other.test.values)


def test_mnist_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_images("mnist", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "MNIST" / "raw"), *MNIST_FILES, "(1)", "(2)", "(3)"):
        assert part in message
    assert "--data.root" in message and "IRESFLOW_DATA" in message and "no network" in message
    assert caught.value.__context__ is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", MNIST_FILES)
def test_mnist_with_one_file_missing(tmp_path: Path, missing: str) -> None:
    (write_mnist(tmp_path) / missing).unlink()
    with pytest.raises(DataError, match=f"missing {missing}\\. Downloading failed"):
        load_images("mnist", tmp_path)


def test_packed_files_are_unpacked_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_mnist(tmp_path)
    sums = []
    for file in MNIST_FILES:
        packed = raw / f"{file}.gz"
        packed.write_bytes(gzip.compress((raw / file).read_bytes()))
        (raw / file).unlink()
        sums.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    assert len(load_images("mnist", tmp_path, validation=5).train) == 25


@pytest.mark.parametrize("file", MNIST_FILES)
@pytest.mark.parametrize("kept", [0, 3, 9, 17])
def test_truncated_mnist_names_the_file(tmp_path: Path, file: str, kept: int) -> None:
    path = write_mnist(tmp_path) / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{file} is corrupt or truncated") as caught:
        load_images("mnist", tmp_path)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("garbage", [b"<html>Not found</html>", b"\0\0\x0a\x03" + bytes(40)])
def test_corrupt_mnist_names_the_file(tmp_path: Path, garbage: bytes) -> None:
    path = write_mnist(tmp_path) / MNIST_FILES[2]
    path.write_bytes(garbage)
    with pytest.raises(DataError, match=f"{MNIST_FILES[2]} is corrupt or truncated"):
        load_images("mnist", tmp_path)


def test_mnist_with_labels_of_something_else(tmp_path: Path) -> None:
    (write_mnist(tmp_path) / MNIST_FILES[1]).write_bytes(idx(np.arange(7)))
    with pytest.raises(DataError, match="30 images but .* 7 labels"):
        load_images("mnist", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cls = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    folder = write_cifar(tmp_path, monkeypatch, cls)
    dataset = load_images(name, tmp_path, validation=4)
    assert (dataset.shape, dataset.levels) == ((3, 32, 32), 256)
    assert dataset.classes[1] == "class 1" and len(dataset.test) == 20
    content = pickle.loads((folder / cls.test_list[0][0]).read_bytes())["data"]
    assert dataset.test.values.flatten(1).equal(torch.from_numpy(content))


def test_cifar_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="missing data_batch_1.*batches.meta.*--data.root"
    ) as caught:
        load_images("cifar10", tmp_path)
    assert caught.value.__context__ is None


def test_corrupt_cifar_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    file = folder / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="data_batch_3 is corrupt.*MD5"):
        load_images("cifar10", tmp_path)


def test_cifar_is_unpacked_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(tmp_path, monkeypatch, datasets.CIFAR10)
    packed = tmp_path / datasets.CIFAR10.filename
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
    (folder / "data_batch_2").unlink()
    assert len(load_images("cifar10", tmp_path, validation=4).train) == 96


class Answer(io.BytesIO):
    """What a mirror answers, as much of it as torchvision looks at."""

    url = None

    @property
    def length(self) -> int:
        return len(self.getvalue())


def test_mnist_is_downloaded_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = write_mnist(tmp_path / "mirror")
    packed = {f"{file}.gz": gzip.compress((raw / file).read_bytes()) for file in MNIST_FILES}
    sums = [(file, hashlib.md5(data).hexdigest()) for file, data in packed.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)

    def serve(request: urllib.request.Request, **_: object) -> Answer:
        return Answer(packed[request.full_url.rsplit("/", 1)[1]])

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    assert len(load_images("mnist", tmp_path / "here", validation=5).train) == 25
    assert capfd.readouterr() == ("", "")


def test_download_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(b"half a file"))
    with pytest.raises(DataError, match="Downloading failed .*corrupted") as caught:
        load_images("mnist", tmp_path)
    assert caught.value.__context__ is None
