"""``iresflow sample --out``: any number of samples, in files that are whole or not there."""

import csv
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import iresflow
from iresflow import ImageFlow, VectorFlow
from iresflow.cli import main
from iresflow.commands.samples import many_samples
from iresflow.data import TableOptions, load_vectors

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def points(tmp_path):
    flow = VectorFlow(2, blocks=1, hidden=4)
    flow.initialize(torch.randn(64, 2))
    flow.eval().save(tmp_path / "flow.pt")
    return flow


@pytest.fixture
def images(tmp_path):
    flow = ImageFlow((1, 2, 2), blocks=(1,), hidden=2, levels=17, context_dim=3)
    x = flow.dequantize(torch.randint(0, 17, (64, 1, 2, 2)))
    flow.initialize(x, torch.eye(3)[torch.arange(64) % 3])
    flow.eval().save(tmp_path / "flow.pt")
    return flow


def sampled(tmp_path, name, *options, n=600, model="flow.pt"):
    out = tmp_path / name
    arguments = ["sample", str(tmp_path / model), "--n", str(n), "--out", str(out), *options]
    assert main(arguments) == 0
    assert not list(tmp_path.glob("*.partial"))
    return out


def unpacked(path):
    """The arrays of an ``.npz`` file, by name."""
    with np.load(path) as file:
        return dict(file)


def test_every_format_of_images_holds_the_same(images, tmp_path, capsys):
    npz = unpacked(sampled(tmp_path, "x.npz"))
    assert sorted(npz) == ["labels", "samples"] and npz["samples"].dtype == np.uint8
    assert npz["labels"].tolist() == [i % 3 for i in range(600)]
    assert npz["samples"].shape == (600, 1, 2, 2) and npz["samples"].max() < 17
    assert np.array_equal(np.load(sampled(tmp_path, "x.npy")), npz["samples"])
    folder = sampled(tmp_path, "pictures", n=3)
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    for file, expected in zip(files, npz["samples"], strict=False):
        with Image.open(file) as image:
            shown = np.asarray(image.convert("L"))
        assert np.array_equal(shown, np.round(expected[0] * (255 / 16)))
    assert "certified error" in capsys.readouterr().out


def test_samples_are_a_function_of_seed_and_number(points, tmp_path):
    long = np.load(sampled(tmp_path, "long.npy", n=600))
    assert np.array_equal(np.load(sampled(tmp_path, "short.npy", n=300)), long[:300])
    other = np.load(sampled(tmp_path, "other.npy", "--seed", "1", n=600))
    assert len(np.unique(np.concatenate([long, other]), axis=0)) == 1200  # no stream twice


def test_samples_are_of_the_density(points, tmp_path):
    """Their latents are of the base density: means and variances within 4 standard errors."""
    x = torch.from_numpy(np.load(sampled(tmp_path, "x.npy", n=4000)))
    z = points.double().transform(x).detach()
    error = 4000**-0.5
    assert bool((z.mean(0).abs() < 4 * error).all())
    assert bool(((z.var(0) - 1).abs() < 4 * 2**0.5 * error).all())
    cold = torch.from_numpy(np.load(sampled(tmp_path, "c.npy", "--temperature", "0.5", n=4000)))
    spread = points.transform(cold).detach().var(0)
    assert bool(((spread - 0.25).abs() < 4 * 2**0.5 * error * 0.25).all())
    assert bool(((spread - 1).abs() > 0.5).all())


def test_a_temperature_that_is_too_high_is_named(points, tmp_path, capsys):
    for temperature, told in (("1e30", "choose a smaller one"), ("-1", "must be 0 or more")):
        for name in ("x.npy", "x.csv"):
            arguments = ["--out", str(tmp_path / name), "--temperature", temperature, "--n", "3"]
            with pytest.raises(SystemExit):
                main(["sample", str(tmp_path / "flow.pt"), *arguments])
            said = capsys.readouterr().err.splitlines()[-1]
            assert "--temperature" in said and told in said


def test_one_class_can_be_asked_for(images, tmp_path):
    file = unpacked(sampled(tmp_path, "x.npz", "--label", "1", n=5))
    assert file["labels"].tolist() == [1] * 5


@pytest.mark.parametrize(("name", "n"), [("few.csv", 40), ("x.csv", 5000), ("x.npz", 5000)])
def test_rows_have_names_contexts_and_the_units_of_the_data(table_run, name, n, tmp_path):
    run, x = table_run
    out = sampled(tmp_path, name, n=n, model=run)
    if name.endswith(".csv"):
        with out.open(newline="") as file:
            columns, *cells = csv.reader(file)
        rows = np.array(cells, dtype=float)
    else:
        stored = unpacked(out)
        columns, rows = stored["columns"].tolist(), stored["samples"]
    assert columns == ["b", "a", "when"] and rows.shape == (n, 3)
    # Contexts are those of test rows, digit by digit.
    assert np.isin(
        rows[:, 0], np.loadtxt(run.parent / "x.csv", delimiter=",", skiprows=1)[:, 1]
    ).all()
    assert abs(np.median(rows[:, 2]) - 1000) < 20 and abs(np.median(rows[:, 1])) < 2


def test_contexts_of_a_run_are_not_made_up_for_its_checkpoint(table_run, tmp_path, capsys):
    run, _ = table_run
    moved = shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "moved.pt")
    with pytest.raises(SystemExit):
        main(["sample", str(moved), "--n", "3", "--out", str(tmp_path / "x.csv")])
    assert "is not a run directory" in capsys.readouterr().err


def test_rows_of_a_sample_can_be_scored_and_trained_on(table_run, tmp_path):
    run, _ = table_run
    found = []
    for name in ("x.csv", "x.npz"):
        out, scores = sampled(tmp_path, name, n=5000, model=run), tmp_path / "s.npy"
        assert main(["evaluate", str(run), "--data", str(out), "--scores", str(scores)]) == 0
        found.append(np.load(scores)["log_prob"])
        table = load_vectors("table", out, table=TableOptions(context=["b"]))
        assert table.columns == ("a", "when") and table.contexts == ("b",)
    assert np.isfinite(found[0]).all() and np.array_equal(*found)


def test_what_is_stopped_never_looks_finished(points, tmp_path, monkeypatch):
    invert, calls = VectorFlow.invert, []

    def stopping(self, *arguments):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return invert(self, *arguments)

    monkeypatch.setattr(VectorFlow, "invert", stopping)
    for name in ("x.npy", "x.npz"):
        calls.clear()
        out = tmp_path / name
        arguments = ["sample", str(tmp_path / "flow.pt"), "--n", "600", "--out", str(out)]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 130 and not out.exists()
    monkeypatch.undo()
    (tmp_path / "x.npy.partial").unlink()
    stored = unpacked(sampled(tmp_path, "x.npz"))  # what was left is replaced
    assert len(stored["samples"]) == 600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.parametrize(
    ("name", "n"), [("x.npy", 3), ("x.npz", 3), ("x.csv", 3), ("x.csv", 5000)]
)
def test_what_a_full_disk_did_not_take_is_named_and_gone(points, tmp_path, name, n, capsys):
    (tmp_path / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "flow.pt"), "--n", str(n), "--out", str(tmp_path / name)])
    assert f"No space left on device ({tmp_path / name} could not" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["flow.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_picture_that_a_full_disk_did_not_take_is_named(images, tmp_path, capsys):
    (tmp_path / "x.png").symlink_to("/dev/full")
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "flow.pt"), "--n", "3", "--out", str(tmp_path / "x.png")])
    assert f"{tmp_path / 'x.png'} could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.npy", "x.csv"])
def test_a_place_in_what_is_no_directory_is_named(points, tmp_path, name, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "flow.pt"), "--out", str(tmp_path / "file" / name)])
    said = capsys.readouterr().err
    assert f"--out: no directory {tmp_path / 'file'} can be made" in said and "Errno" not in said


def test_a_directory_that_is_not_empty_is_left_alone(images, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.txt").write_text("mine")
    arguments = ["sample", str(tmp_path / "flow.pt"), "--out", str(tmp_path / "pictures")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "is not empty" in capsys.readouterr().err


def refused(tmp_path, name, *options, capsys):
    """What is said of an ``--out``; nothing is written or made."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "flow.pt"), "--out", str(tmp_path / name), *options])
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().err
    assert said.startswith(f"error: --out {tmp_path / name}: ") and said.count("\n") == 1
    return said


def test_endings_are_those_of_the_samples(images, tmp_path, capsys):
    for n in ("3", "9000"):
        for name in ("new/x.csv", "x.txt", "x.pt"):
            assert ".npz, .npy or a directory" in refused(tmp_path, name, "--n", n, capsys=capsys)
    said = refused(tmp_path, "x.npz", "--reconstruct", capsys=capsys)
    assert "pictures end in .png" in said
    assert sampled(tmp_path, "x.JPG", n=2).is_file()
    assert sampled(tmp_path, "x.NPY", n=2).is_file()


def test_endings_of_vectors_are_those_of_tables_and_of_a_picture(points, tmp_path, capsys):
    for n in ("3", "9000"):
        for name in ("new/x.jpg", "x.txt", "x"):
            assert ".csv, .npz, .npy or .png" in refused(tmp_path, name, "--n", n, capsys=capsys)
    sampled(tmp_path, "x.PNG", n=2)
    assert (tmp_path / "x.csv").is_file() and (tmp_path / "x.png").is_file()


def test_memory_is_that_of_a_batch(tmp_path, monkeypatch):
    """NumPy's memory, which `tracemalloc` sees, does not grow with the number of samples."""
    flow = ImageFlow((1, 16, 16), blocks=(0,), hidden=2)
    flow.eval().save(tmp_path / "flow.pt")
    monkeypatch.setattr(many_samples, "BLOCK", 16)
    peaks = []
    for n in (64, 1024):
        tracemalloc.start()
        sampled(tmp_path, f"{n}.npz", n=n)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    whole = 1024 * 16 * 16
    assert (tmp_path / "1024.npz").stat().st_size > whole
    assert peaks[1] - peaks[0] < whole / 2
    assert iresflow.load(tmp_path / "flow.pt").levels == 256


def test_samples_never_overwrite_the_runs_own_table(table_run, tmp_path, capsys):
    run, _ = table_run
    table = run.parent / "x.csv"
    before = table.read_bytes()
    (tmp_path / "link.csv").symlink_to(table)
    for model in (run, run / "checkpoints" / "best.pt"):
        # Beside a picture of vectors lies a table of its name.
        for out in (table, tmp_path / "link.csv", table.with_suffix(".png")):
            with pytest.raises(SystemExit):
                main(["sample", str(model), "--n", "3", "--out", str(out)])
            assert "would overwrite the data that are read from" in capsys.readouterr().err
    assert table.read_bytes() == before
    assert sorted(path.name for path in run.parent.glob("x.*")) == ["x.csv"]


def test_samples_never_lie_among_the_images_of_the_run(folder_run, tmp_path, capsys):
    run, folder = folder_run
    before = sorted(folder.rglob("*"))
    for out in (folder / "new.png", folder / "new", folder.with_suffix(".png")):
        with pytest.raises(SystemExit):
            main(["sample", str(run), "--n", "3", "--out", str(out), "--each"])
        assert f"lies in {folder}, whose images are read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["certify", str(run), "--plots", "--out", str(folder / "new")])
    assert "whose images are read" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert sampled(tmp_path, folder / "new.npz", n=2, model=run).is_file()  # no image
    (folder / "new.npz").unlink()
