"""``iresflow evaluate --data``: each sample's log-density and its error, in a file."""

import csv
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY
from PIL import Image

import iresflow
from iresflow import ImageFlow, VectorFlow
from iresflow.cli import main
from iresflow.commands import scores as scores_module
from iresflow.training.evaluation.single import Scoring
from iresflow.training.objectives.contexts import context_of

pytestmark = pytest.mark.usefixtures("float32")

COLUMNS = ["standard_error", "truncation_bound", "low", "high"]


@pytest.fixture
def points(tmp_path):
    """A flow on two dimensions, in a file that knows nothing of its data."""
    flow = VectorFlow(2, blocks=2, hidden=8)
    flow.initialize(torch.randn(64, 2))
    flow.eval().save(tmp_path / "flow.pt")
    return flow


@pytest.fixture
def images(tmp_path):
    """A flow on 1 x 4 x 4 images of 256 levels, in a file."""
    return image_flow(tmp_path, (1, 4, 4))


def image_flow(tmp_path, shape, **settings):
    flow = ImageFlow(shape, blocks=(1, 1), hidden=4, **settings)
    x = flow.dequantize(torch.randint(0, flow.levels, (64, *shape)))
    classes = torch.arange(64) % max(1, flow.context_dim)
    flow.initialize(x, torch.eye(flow.context_dim)[classes] if flow.context_dim else None)
    flow.eval().save(tmp_path / "flow.pt")
    return flow


def evaluated(tmp_path, data, *options, kind="csv", model="flow.pt", code=0):
    """The file of scores of some data, by column."""
    out = tmp_path / f"scores.{kind}"
    arguments = ["evaluate", str(tmp_path / model), "--data", str(data), "--scores", str(out)]
    assert main([*arguments, *options]) == code
    assert not list(tmp_path.glob("*.partial"))
    if kind == "npy":
        return np.load(out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def refused(tmp_path, data, *options, capsys, model="flow.pt"):
    out = tmp_path / "scores.csv"
    out.unlink(missing_ok=True)
    arguments = ["evaluate", str(tmp_path / model), "--data", str(data), "--scores", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *options])
    assert ended.value.code == 1 and not out.exists()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def pictures(folder, values, names=None):
    """Images uint8 ``(N, H, W)`` or ``(N, H, W, 3)`` as PNG files."""
    for index, image in enumerate(values):
        file = folder / (names[index] if names else f"{index:03d}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image, dtype=np.uint8)).save(file)
    return folder


# What is written.


def test_rows_of_a_table_have_the_models_exact_log_densities(points, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b", comments="")
    found = evaluated(tmp_path, tmp_path / "x.csv", "--batch-size", "7")
    assert list(found) == ["row", "log_prob", *COLUMNS]
    assert found["row"].tolist() == [str(i) for i in range(30)]
    oracle = points.double().log_prob(torch.from_numpy(x))  # in float64, all in one batch
    numbers = {name: column.astype(float) for name, column in found.items()}
    assert np.allclose(numbers["log_prob"], oracle.detach(), atol=1e-4)
    assert (numbers["low"] <= oracle.detach().numpy()).all()
    assert (oracle.detach().numpy() <= numbers["high"]).all()
    assert (numbers["standard_error"] == 0).all()  # exact up to 32 dimensions


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_are_scored_as_tables_are(points, tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(9, 2))
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", fmt="%.17g")
    save = np.save if kind == "npy" else np.savez
    save(tmp_path / f"x.{kind}", x)
    a = evaluated(tmp_path, tmp_path / "x.csv")
    b = evaluated(tmp_path, tmp_path / f"x.{kind}", kind="npy")
    assert b.dtype.names == tuple(a) and b["row"].tolist() == list(range(9))
    assert np.allclose(b["log_prob"], a["log_prob"].astype(float), rtol=1e-7)


def test_the_intervals_of_an_image_hold_the_mean_over_its_noise(images):
    """An image's bits/dim is the expectation over dequantisation noise."""
    image = torch.randint(0, 256, (1, 1, 4, 4))
    draws = 2500
    many = images.dequantize(image.expand(draws, -1, -1, -1))
    with torch.no_grad():
        exact = 8 - images.log_prob(many).double() / (16 * np.log(2))
    truth, error = float(exact.mean()), float(exact.std() / draws**0.5)
    count, level = 80, 0.8
    found = [Scoring(seed=seed, level=level)(images, image, None) for seed in range(count)]
    mean = np.mean([float(score.values) for score in found])
    spread = np.std([float(score.values) for score in found])
    assert abs(mean - truth) < 4 * (spread**2 / count + error**2) ** 0.5
    # The standard errors are of this spread.
    claimed = np.mean([float(score.standard_errors) ** 2 for score in found]) ** 0.5
    assert abs(claimed / spread - 1) < 4 * (1 / (2 * count) + 1 / (2 * 3 * count)) ** 0.5

    def held(share):
        """How often intervals of a share of their width hold the truth."""
        middle = [float(score.values) for score in found]
        half = [share * float(score.high - score.low) / 2 for score in found]
        return np.mean([abs(m - truth) <= h for m, h in zip(middle, half, strict=True)])

    slack = 4 * (level * (1 - level) / count) ** 0.5
    assert held(1.0) >= level - slack
    assert held(0.4) < level - slack  # intervals that are too narrow are found out


def test_a_sample_has_the_same_score_in_any_batch_and_file(images, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (7, 4, 4))
    folder = pictures(tmp_path / "images", values)
    np.save(tmp_path / "grey.npy", values)
    np.save(tmp_path / "last.npy", values[..., None])
    np.save(tmp_path / "first.npy", values[:, None].astype(np.uint8))
    names = [f"{i:03d}.png" for i in range(7)]
    first = evaluated(tmp_path, folder, "--batch-size", "3")
    assert first["file"].tolist() == names
    expected = first["bits_per_dim"].astype(float)
    for name in ("grey", "last", "first"):
        other = evaluated(tmp_path, tmp_path / f"{name}.npy")
        assert np.allclose(other["bits_per_dim"].astype(float), expected, rtol=1e-6)
    alone = evaluated(tmp_path, folder / "004.png")
    assert alone["file"].tolist() == ["004.png"]
    assert np.allclose(float(alone["bits_per_dim"][0]), expected[4], rtol=1e-6)
    seeded = evaluated(tmp_path, folder, "--seed", "1")["bits_per_dim"].astype(float)
    assert not np.allclose(seeded, expected, rtol=1e-6)


def test_files_hold_levels_as_samples_are_written(tmp_path):
    """Of 17 grey levels, 0 is black and 16 white."""
    flow = image_flow(tmp_path, (1, 4, 4), levels=17)
    levels = np.random.default_rng(0).integers(0, 17, (3, 4, 4))
    folder = pictures(tmp_path / "images", np.round(levels * 255 / 16))
    np.save(tmp_path / "x.npy", levels)
    a, b = evaluated(tmp_path, folder), evaluated(tmp_path, tmp_path / "x.npy")
    assert a["bits_per_dim"].tolist() == b["bits_per_dim"].tolist() and flow.levels == 17


def test_rows_that_leave_the_range_of_floats_are_told(points, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.array([[0.0, 0.0], [1e30, 0.0], [0.1, 0.2], [0.0, -1e30]]))
    found = evaluated(tmp_path, tmp_path / "x.npy", "--batch-size", "2")
    assert [found[end][1] for end in ("log_prob", "low", "high")] == ["-inf", "-inf", "inf"]
    said = capsys.readouterr()
    assert said.err.count("2 of 4 samples left the range of torch.float32") == 1
    finite = found["log_prob"].astype(float)[[0, 2]]
    assert f"{finite.mean():.4f} in the mean" in said.out and "over 2 samples" in said.out


# Contexts.


def test_classes_are_directories_labels_or_one_for_all(tmp_path):
    flow = image_flow(tmp_path, (1, 4, 4), context_dim=3)
    values = np.random.default_rng(0).integers(0, 256, (4, 4, 4))
    classes = np.array([2, 0, 2, 1])
    names = [f"{label}/{i}.png" for i, label in enumerate(classes)]
    folder = pictures(tmp_path / "images", values, names)
    np.savez(tmp_path / "labels.npz", x=values, labels=classes)
    contexts = np.eye(3)[classes]
    np.savez(tmp_path / "contexts.npz", x=values, contexts=contexts)
    a = evaluated(tmp_path, folder)
    by_name = dict(zip(a["file"], a["bits_per_dim"].astype(float), strict=True))
    context = context_of(torch.from_numpy(classes), 3, next(flow.parameters()))
    oracle = Scoring(draws=4)(flow, torch.from_numpy(values)[:, None], context).values
    assert np.allclose([by_name[name] for name in names], oracle, rtol=1e-6)
    for file in ("labels.npz", "contexts.npz"):
        found = evaluated(tmp_path, tmp_path / file)["bits_per_dim"].astype(float)
        assert np.allclose(found, oracle, rtol=1e-6)
    np.save(tmp_path / "x.npy", values)
    two = evaluated(tmp_path, tmp_path / "x.npy", "--label", "2")["bits_per_dim"].astype(float)
    same = np.isclose(two, oracle, rtol=1e-6)
    assert same.tolist() == [True, False, True, False]


def test_a_table_for_classes_has_a_column_of_labels(tmp_path):
    flow = VectorFlow(2, blocks=1, hidden=4, context_dim=2)
    flow.initialize(torch.randn(32, 2), torch.eye(2).repeat(16, 1))
    flow.eval().save(tmp_path / "flow.pt")
    (tmp_path / "x.csv").write_text("x,label,y\n0.5,1,-0.5\n0.5,0,-0.5\n")
    found = evaluated(tmp_path, tmp_path / "x.csv")["log_prob"].astype(float)
    x = torch.tensor([[0.5, -0.5]]).expand(2, -1)
    oracle = flow.log_prob(x, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert np.allclose(found, oracle.detach(), atol=1e-5) and abs(found[0] - found[1]) > 1e-4


@pytest.mark.filterwarnings("default:.*passed over")
@pytest.mark.parametrize("place", ["run", "checkpoint", "moved"])
def test_a_run_or_its_checkpoint_alone_knows_columns_offsets_and_scales(
    table_run, place, tmp_path, capsys
):
    run, x = table_run
    model = {"run": run, "checkpoint": run / "checkpoints" / "best.pt", "moved": tmp_path / "m.pt"}
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "m.pt")
    # Other columns beside, in another order.
    text = [f"{b},7,{when},{a}" for a, b, when in x[:5]]
    (tmp_path / "y.csv").write_text("\n".join(["b,id,when,a", *text]) + "\n")
    found = evaluated(tmp_path, tmp_path / "y.csv", model=model[place])["log_prob"]
    assert "passed over: id" in capsys.readouterr().err
    flow = iresflow.load(run / "checkpoints" / "best.pt").double()
    dataset = iresflow.training.runs.known_data.load_data(run)
    b = (x[:5, 1] - dataset.scaling.mean[0]) / dataset.scaling.deviation[0]
    values = torch.from_numpy(np.column_stack([x[:5, 0], x[:5, 2] - 1000]))
    oracle = flow.log_prob(values, torch.from_numpy(b[:, None])).detach().numpy()
    assert np.allclose(found.astype(float), oracle, atol=1e-4)


def test_a_run_on_a_folder_resizes_and_knows_its_classes(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 6, 9, 3))
    names = [f"{'owl' if i % 2 else 'cat'}/{i}.png" for i in range(40)]
    folder = pictures(tmp_path / "data", values, names)
    arguments = f"--data.name folder --data.root {folder} --data.size 4 --model.conditional true"
    more = ["--model.blocks", "[0,1]", *TINY, "--runs", str(tmp_path), "--name", "f"]
    assert main(["train", *arguments.split(), *more]) == 0
    owls = tmp_path / "new"
    shutil.copytree(folder / "owl", owls / "owl")
    found = evaluated(tmp_path, owls, model="0000-f")
    assert len(found["file"]) == 20 and np.isfinite(found["bits_per_dim"].astype(float)).all()
    one = evaluated(tmp_path, owls, "--label", "1", model="0000-f")
    assert one["bits_per_dim"].tolist() == found["bits_per_dim"].tolist()  # owl is the second


@pytest.mark.filterwarnings("default:.*hold 16 or 32 bits")
def test_bits_of_grey_values_are_those_of_the_set_as_in_training(folder_run, tmp_path, capsys):
    """The run was trained on images of 8 bits, which tell nothing of images of more."""
    run, _ = folder_run
    values = np.random.default_rng(0).integers(0, 1 << 12, (5, 4, 4), dtype=np.uint16)
    values[0] >>= 6  # which alone would be of fewer bits
    values[1, 0, 0] = 4095
    deep, plain = tmp_path / "deep", pictures(tmp_path / "plain", values >> 4)
    deep.mkdir()
    for index, image in enumerate(values):
        Image.fromarray(image).save(deep / f"{index:03d}.png")
    expected = evaluated(tmp_path, plain, model=run)["bits_per_dim"].astype(float)
    assert "bits" not in capsys.readouterr().err
    found = evaluated(tmp_path, deep, "--batch-size", "2", model=run)
    # Batches of other sizes round otherwise; images of 16 bits would be whole bits off.
    assert np.allclose(found["bits_per_dim"].astype(float), expected, atol=1e-5)
    said = capsys.readouterr().err
    assert f"5 images in {deep} hold 16 or 32 bits" in said and "as images of 12 bits" in said


# What is refused, and what is left out.


def test_what_the_model_does_not_take_is_one_line(images, tmp_path, capsys):
    rng = np.random.default_rng(0)
    cases = {
        "shape": (rng.integers(0, 256, (3, 5, 5)), r"shape \(3, 5, 5\); the model .*\(N, 1, 4, 4"),
        "range": (np.full((3, 4, 4), 256), "row 0: values from 256 to 256; .* 0 .. 255"),
        "type": (rng.random((3, 4, 4)), "holds float64; integers 0 .. 255 are needed"),
    }
    for name, (array, message) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        line = refused(tmp_path, tmp_path / f"{name}.npy", capsys=capsys)
        assert re.search(message, line), line
    folder = pictures(tmp_path / "large", np.zeros((2, 8, 8)))
    assert "000.png has 8 x 8 pixels" in refused(tmp_path, folder, capsys=capsys)
    assert len(evaluated(tmp_path, folder, "--resize")["file"]) == 2
    (tmp_path / "x.csv").write_text("1,2\n3,4\n")
    assert "is a table" in refused(tmp_path, tmp_path / "x.csv", capsys=capsys)
    assert "does not exist" in refused(tmp_path, tmp_path / "no", capsys=capsys)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "type.npy").read_bytes()[:-40])
    assert "is truncated" in refused(tmp_path, tmp_path / "cut.npy", capsys=capsys)
    assert "--label is for" in refused(tmp_path, folder, "--label", "1", capsys=capsys)


def test_columns_that_are_missing_are_named(table_run, points, tmp_path, capsys):
    run, x = table_run
    (tmp_path / "y.csv").write_text("b,c,when\n1,2,3\n")
    line = refused(tmp_path, tmp_path / "y.csv", capsys=capsys, model=run)
    assert "no column 'a'; it has b, c, when" in line
    assert "3 columns, and the model takes 2" in refused(
        tmp_path, tmp_path / "y.csv", capsys=capsys
    )
    np.save(tmp_path / "x.npy", np.array([[1.0, 2.0], [np.nan, 1.0]]))
    assert "row 1, column 0: nan" in refused(tmp_path, tmp_path / "x.npy", capsys=capsys)


def test_classes_that_the_model_has_not_are_named(tmp_path, capsys):
    image_flow(tmp_path, (1, 4, 4), context_dim=2)
    values = np.zeros((2, 4, 4))
    folder = pictures(tmp_path / "images", values, ["0/a.png", "dog/a.png"])
    assert "has the classes dog; the model has 0, 1" in refused(tmp_path, folder, capsys=capsys)
    np.save(tmp_path / "x.npy", values.astype(int))
    assert "pass --label" in refused(tmp_path, tmp_path / "x.npy", capsys=capsys)
    np.savez(tmp_path / "x.npz", x=values.astype(int), labels=np.array([0, 2]))
    line = refused(tmp_path, tmp_path / "x.npz", capsys=capsys)
    assert "labels from 0 to 2; the model has the classes 0 .. 1" in line


@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_files_that_cannot_be_read_are_left_out_and_named(images, tmp_path, capsys, kind):
    folder = pictures(tmp_path / "images", np.zeros((3, 4, 4)))
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[:40])
    pictures(folder, [np.zeros((4, 4, 3)) + [0, 1, 2]], ["colour.png"])
    found = evaluated(tmp_path, folder, kind=kind, code=1)
    assert list(found["file"]) == ["000.png", "002.png"]
    warned = capsys.readouterr().err
    assert "2 files could not be read: 001.png" in warned and "in colour" in warned


def test_what_is_stopped_never_looks_finished(points, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "x.npy", np.zeros((9, 2)))
    score, calls = scores_module._score, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(scores_module, "_score", stopping)
    for kind in ("csv", "npy"):
        out, model = tmp_path / f"s.{kind}", str(tmp_path / "flow.pt")
        arguments = ["--data", str(tmp_path / "x.npy"), "--scores", str(out), "--batch-size", "2"]
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", model, *arguments])
        assert ended.value.code == 130 and not out.exists()
        said = capsys.readouterr().err
        assert f"what was scored is in {out}.partial, which stays" in said
        assert Path(f"{out}.partial").is_file()
        calls.clear()
    assert len(np.load(tmp_path / "s.npy.partial", allow_pickle=False)) == 4


def test_a_mapped_array_is_read_a_batch_at_a_time(points, tmp_path, monkeypatch):
    """No more than a batch becomes a tensor, however many rows the file has."""
    np.save(tmp_path / "x.npy", np.zeros((5000, 2), dtype=np.float32))
    sizes = []
    score = scores_module._score
    monkeypatch.setattr(
        scores_module,
        "_score",
        lambda scoring, model, query: (
            sizes.append((len(query), type(query.rows))) or score(scoring, model, query)
        ),
    )
    found = evaluated(tmp_path, tmp_path / "x.npy", "--batch-size", "1000", kind="npy")
    assert len(found) == 5000 and sizes == [(1000, range)] * 5


def test_memory_does_not_grow_with_the_rows_of_a_mapped_array(points, tmp_path):
    """NumPy's memory, which `tracemalloc` sees; what is mapped from files is none of it.

    A file that is read whole, the control, takes more the more rows it has.
    """

    def peak(name):
        files = ["--data", str(tmp_path / name), "--scores", str(tmp_path / "scores.npy")]
        tracemalloc.start()
        assert main(["evaluate", str(tmp_path / "flow.pt"), *files, "--batch-size", "4000"]) == 0
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    np.save(tmp_path / "x.npy", np.zeros((40_000, 2)))
    evaluated(tmp_path, tmp_path / "x.npy", kind="npy")  # what is loaded once
    few = peak("x.npy")
    rows = np.zeros((160_000, 2))
    np.save(tmp_path / "x.npy", rows)
    np.savez(tmp_path / "x.npz", rows)
    many = peak("x.npy")
    assert many < few + rows.nbytes / 8
    assert peak("x.npz") > many + rows.nbytes / 2


def test_nothing_is_left_where_nothing_was_scored(points, tmp_path, capsys):
    (tmp_path / "words.png").write_text("no image")
    out = tmp_path / "out.csv"
    with pytest.raises(SystemExit):
        main(
            [
                "evaluate",
                str(tmp_path / "flow.pt"),
                "--data",
                str(tmp_path / "words.png"),
                "--scores",
                str(out),
            ]
        )
    assert "not finished" not in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


# What is read stays as it is.


def test_scores_never_overwrite_the_samples_or_the_runs_own_table(table_run, tmp_path, capsys):
    run, x = table_run
    data = tmp_path / "y.csv"
    np.savetxt(data, x, delimiter=",", header="a,b,when", comments="")
    (tmp_path / "link.csv").symlink_to(data)
    (tmp_path / "twin.csv").hardlink_to(data)
    table = run.parent / "x.csv"
    before = data.read_bytes(), table.read_bytes()
    for out in (data, tmp_path / "link.csv", tmp_path / "twin.csv", table):
        with pytest.raises(SystemExit):
            main(["evaluate", str(run), "--data", str(data), "--scores", str(out)])
        said = capsys.readouterr().err
        assert f"--scores {out} would overwrite the data that are read from" in said
    assert (data.read_bytes(), table.read_bytes()) == before
