"""A run knows its data: what is said and refused when they are others later."""

import json
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import write_version_1
from PIL import Image

from iresflow.cli import main
from iresflow.data import load_dataset
from iresflow.data.cuts import ByHash
from iresflow.data.tables.files import read_table
from iresflow.data.tables.text import write_rows
from iresflow.errors import DataError, RunError
from iresflow.models.files import read_file
from iresflow.training.loop import batches
from iresflow.training.loop.batches import Batches
from iresflow.training.runs.known_data import KnownData, load_data

pytestmark = pytest.mark.usefixtures("float32")

TINY = """--model.blocks [1,1] --model.hidden 4 --model.dequantization_blocks 1
--training.steps 2 --training.batch_size 8
--training.validate_every 2 --training.validation_samples 8 --training.compile false
--log_det.terms 3""".split()


def noise(file: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory with a run on 60 images in ``images/``, and a copy of all that it holds."""
    torch.set_default_dtype(torch.float32)
    home, copy = (tmp_path_factory.mktemp("home") / name for name in ("used", "kept"))
    (home / "images").mkdir(parents=True)
    for number in range(60):
        noise(home / "images" / f"{number:02d}.png", number)
    arguments = f"--data.name folder --data.size 8 --data.channels 1 --runs {home / 'runs'}"
    root = ["--data.root", str(home / "images")]
    assert main(["train", *TINY, *arguments.split(), *root]) == 0
    return home, Path(shutil.copytree(home, copy))


@pytest.fixture
def run(trained: tuple[Path, Path]) -> Path:
    """That run in its directory, as it was."""
    home, kept = trained
    shutil.rmtree(home)
    shutil.copytree(kept, home)
    return home / "runs" / "0000-folder"


def new_image(run: Path, part: str) -> str:
    """Adds an image whose hash puts it in a split; its name."""
    images = run.parents[1] / "images"
    names = [file.name for file in images.iterdir()]
    for number in range(100, 400):
        name = f"{number}.png"
        keys = [other.encode() for other in (*names, name)]
        if len(names) in getattr(ByHash(0).cut(keys, validation=0.1, test=0.1), part):
            noise(images / name, number)
            return name
    raise AssertionError("none fell there")


def image_of(run: Path, part: str) -> Path:
    """An image of a split."""
    dataset = load_data(run)
    assert dataset.fingerprint is not None
    return run.parents[1] / "images" / dataset.fingerprint.part(part).names[0]


def resumes(run: Path) -> int:
    return main(["train", "--resume", str(run), "--training.steps", "3"])


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(arguments)
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_same_data_are_gone_on_with(run: Path) -> None:
    known = KnownData.of(run)
    assert known is not None and known.fingerprint is not None
    assert len(known.fingerprint.train.ids) == len(load_data(run).train)
    assert resumes(run) == 0


@pytest.mark.filterwarnings("default")
def test_an_image_added_to_the_test_split_is_told_and_evaluated(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(load_data(run).test)
    name = new_image(run, "test")
    assert main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().err
    assert "warning: the test split is another" in told and f"1 added in test ({name})" in told
    assert json.loads((run / "evaluation.json").read_text())["samples"] == before + 1
    assert resumes(run) == 0
    assert f"have changed: 1 added in test ({name})" in capsys.readouterr().err


def test_an_image_added_to_the_training_split_ends_the_run_but_not_its_evaluation(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = new_image(run, "train")
    assert main(["evaluate", str(run)]) == 0
    message = error_of(["train", "--resume", str(run)], capsys)
    assert f"have changed: 1 added in train ({name})" in message


def test_a_training_image_that_became_a_test_image_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, name = image_of(run, "train"), new_image(run, "test")
    image.replace(image.with_name(name))
    message = error_of(["evaluate", str(run)], capsys)
    assert "1 samples of the test split were trained on" in message
    assert f"1 moved from train to test ({name})" in message
    assert "trained on" in error_of(["sample", str(run), "--reconstruct"], capsys)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_an_image_with_other_pixels_is_refused(
    run: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_of(run, part)
    noise(image, 999)
    assert f"1 changed in {part} ({image.name})" in error_of(
        ["train", "--resume", str(run)], capsys
    )


def test_a_removed_image_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_of(run, "train").unlink()
    assert "1 removed in train" in error_of(["train", "--resume", str(run)], capsys)


def test_another_range_of_values_is_refused(run: Path) -> None:
    known = json.loads((run / "data.json").read_text())
    known["fingerprint"]["reading"] = "images of 12 bits"
    (run / "data.json").write_text(json.dumps(known))
    with pytest.raises(DataError, match="values were read as images of 12 bits, now as"):
        load_data(run)


def test_a_damaged_file_is_named(run: Path) -> None:
    (run / "data.json").write_text("{}")
    with pytest.raises(RunError, match=r"data\.json is damaged"):
        load_data(run)


def as_version_0_1(run: Path) -> None:
    """Makes the run what that version would have written."""
    (run / "data.json").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    old = ("name", "root", "size", "channels", "count", "validation", "test", "flip")
    config["data"] = {name: config["data"][name] for name in old}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for checkpoint in (run / "checkpoints").iterdir():
        content = read_file(checkpoint)
        write_version_1({k: v for k, v in content.items() if k != "options"}, checkpoint)


@pytest.mark.filterwarnings("default")
def test_an_old_run_keeps_its_splits_and_says_what_it_can_not_know(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_version_0_1(run)
    with pytest.warns(UserWarning, match="made before runs knew their data"):
        dataset = load_data(run)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    images = sorted((run.parents[1] / "images").iterdir())
    with Image.open(images[order[0]]) as first:
        assert dataset.test.values[0, 0].numpy().tolist() == np.asarray(first).tolist()
    assert len(dataset.test) == 6
    assert resumes(run) == 0
    assert "made before runs knew their data" in capsys.readouterr().err
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert stored["order"] == "shuffle" and stored["bits"] == 16
    assert KnownData.of(run) is not None
    assert load_data(run).test.values.equal(dataset.test.values)


def test_built_in_sets_are_those_of_old_runs(tmp_path: Path) -> None:
    assert main(["train", *TINY, "--runs", str(tmp_path), "--data.test", "24"]) == 0
    run = tmp_path / "0000-digits"
    as_version_0_1(run)
    assert load_data(run).test.values.equal(load_dataset("digits", test=24).test.values)
    assert resumes(run) == 0


def test_a_table_that_grew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = np.random.default_rng(0).normal(size=(100, 2))
    file = tmp_path / "t.npy"
    np.save(file, table)
    arguments = ["--data.name", "table", "--data.root", str(file), "--runs", str(tmp_path)]
    assert main(["train", *TINY, *arguments]) == 0
    run = tmp_path / "0000-table"
    before = load_data(run).test.values
    np.save(file, np.concatenate([np.random.default_rng(1).normal(size=(50, 2)), table[::-1]]))
    with pytest.warns(UserWarning, match=r"\d added in test"):
        after = load_data(run).test.values
    assert {tuple(row) for row in before.tolist()} < {tuple(row) for row in after.tolist()}
    assert "added in train" in error_of(["train", "--resume", str(run)], capsys)


def test_a_cache_trains_the_same_weights(run: Path) -> None:
    tmp_path = run.parents[1]
    arguments = f"--data.name folder --data.size 8 --data.channels 1 --runs {tmp_path / 'runs'}"
    places = ["--data.root", str(tmp_path / "images"), "--data.cache", str(tmp_path / "cache")]
    assert main(["train", *TINY, *arguments.split(), *places]) == 0
    states = [
        torch.load(path / "checkpoints" / "last.pt", weights_only=True)["training"]["flow"]
        for path in (run, tmp_path / "runs" / "0001-folder")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_a_table_with_contexts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    time = 1.7e9 + np.sort(rng.uniform(0, 1e4, 300))
    a = rng.normal(size=300)
    write_rows(tmp_path / "t.csv", np.column_stack([time, a, 3 * a]), ("time", "a", "b"))
    arguments = ["--data.name", "table", "--data.root", str(tmp_path / "t.csv")]
    arguments += ["--data.context", "[a, time]", "--runs", str(tmp_path)]
    assert main(["train", *TINY, *arguments]) == 0
    run = tmp_path / "0000-table"
    assert main(["evaluate", str(run)]) == 0
    assert main(["sample", str(run), "--n", "60"]) == 0
    rows, names = read_table(run / "samples" / "samples.csv")
    assert names == ("a", "time", "b") and rows.shape == (60, 3)
    known = np.column_stack([a, time])
    distances = np.abs((rows[:, None, :2] - known[None]) / known.std(0)).max(2).min(1)
    assert distances.max() < 1e-6
    for label in ("0", "1"):
        assert "--label is for classes" in error_of(["sample", str(run), "--label", label], capsys)
    scaling = load_data(run).scaling
    write_rows(
        tmp_path / "t.csv",
        np.vstack([np.column_stack([time, a, 3 * a]), [[1.8e9, 9.0, 9.0]] * 3]),
        ("time", "a", "b"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_data(run).scaling == scaling  # of the rows that it was trained on


def test_batches_of_a_large_split_are_made_ahead_and_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = load_dataset("digits").train
    plain = Batches(split, 50, 0, torch.device("cpu")).from_step(3)
    monkeypatch.setattr(batches, "LARGE", 1)
    early = Batches(split, 50, 0, torch.device("cpu")).from_step(3)
    before = threading.active_count()
    for _ in range(60):
        one, other = next(plain), next(early)
        assert one.values.equal(other.values)
        assert one.labels is not None and other.labels is not None
        assert one.labels.equal(other.labels)
    assert threading.active_count() == before + 1
    early.close()
    assert threading.active_count() == before


def test_shifts_are_for_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--runs", str(tmp_path), "--data.shift", "1"]
    assert main(["train", *TINY, *arguments, "--data.flip", "true"]) == 0
    message = error_of(["train", *TINY, *arguments, "--data.name", "rings"], capsys)
    assert "data.shift change images; rings has none" in message
    assert "other values of data.shift" in error_of(
        ["train", "--resume", str(tmp_path / "0000-digits"), "--data.shift", "2"], capsys
    )
