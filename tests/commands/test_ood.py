"""``iresflow ood``: a table, a figure and a file of scores, from a run and other data."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from iresflow import VectorFlow
from iresflow.cli import main
from iresflow.commands.ood import NAMES
from iresflow.data.queries import Event
from iresflow.data.queries.named import named_samples

pytestmark = pytest.mark.usefixtures("float32")

TINY = """--model.blocks [1,1] --model.hidden 4 --model.dequantization_blocks 1
--training.steps 2 --training.batch_size 8
--training.validate_every 2 --training.validation_samples 8 --log_det.terms 3
--training.compile false --data.test 24""".split()
FEW = "--n 8 --fit 12 --draws 3".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *TINY, "--runs", str(runs)]) == 0
    return runs / "0000-digits"


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    runs = tmp_path_factory.mktemp("points")
    small = "--config toy2d --model.prior student --model.blocks [2] --data.count 400".split()
    assert main(["train", *small, *TINY[2:-2], "--runs", str(runs)]) == 0
    return next(runs.iterdir())


def fails(arguments, capsys, code=1):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def rows_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_all_scores_of_images_in_an_array(run, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 17, (9, 8, 8))
    np.save(tmp_path / "noise.npy", noise)
    scores, out = tmp_path / "new" / "scores.csv", tmp_path / "out"
    arguments = ["ood", str(run), "--outside", str(tmp_path / "noise.npy"), *FEW]
    where = ["--scores", str(scores), "--out", str(out), "--background-steps", "2"]
    assert main([*arguments, *where]) == 0
    printed = capsys.readouterr().out
    table = json.loads((out / "results.json").read_text())["separation"]
    assert [row["score"] for row in table] == list(NAMES)
    assert all(0 <= row["low"] <= row["AUROC"] <= row["high"] <= 1 for row in table)
    assert all(name in printed for name in NAMES)
    with Image.open(out / "histograms.png") as figure:
        assert figure.size[0] > 800
    lines = rows_of(scores)
    assert [line["set"] for line in lines] == ["inside"] * 8 + ["outside"] * 8
    assert [line["sample"] for line in lines[8:]] == [str(i) for i in range(8)]
    # The table is that of the file's scores.
    values = np.array([float(line["LogProb"]) for line in lines])
    pairs = np.sign(values[8:, None] - values[None, :8])
    auroc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert table[0]["AUROC"] == pytest.approx(auroc)
    for row in table:
        name, threshold = row["score"], row["threshold"]
        undecided = {"inside": [], "outside": []}
        for line in lines:
            low, value, high = (float(line[name + end]) for end in ("_low", "", "_high"))
            assert low <= value <= high
            said = (
                "outlying" if low > threshold else "inside" if high <= threshold else "undecided"
            )
            assert line[f"{name}_decision"] == said
            undecided[line["set"]].append(said == "undecided")
        for where, shares in undecided.items():
            assert row[f"undecided {where}"] == pytest.approx(np.mean(shares))
        # Of eight samples none is in the 5 % that may exceed it, but for the digits of the file.
        assert max(float(line[name]) for line in lines[:8]) == pytest.approx(threshold, rel=1e-8)


def test_named_sets_directories_and_some_scores(run, tmp_path, capsys):
    image = Image.fromarray(np.full((8, 8), 255, dtype=np.uint8))
    (tmp_path / "white").mkdir()
    for name in ("a.png", "b.png"):
        image.save(tmp_path / "white" / name)
    (tmp_path / "white" / "broken.png").write_bytes(b"no image")
    only = ["--only", "LatentFit, Complexity", *FEW]
    scores = ["--scores", str(tmp_path / "s.csv")]
    assert main(["ood", str(run), "--outside", str(tmp_path / "white"), *only, *scores]) == 0
    printed = capsys.readouterr().out
    assert "broken.png" in printed and "LogProb" not in printed
    assert [line["sample"] for line in rows_of(tmp_path / "s.csv")[8:]] == ["a.png", "b.png"]
    assert (run / "ood" / "histograms.png").is_file()
    assert main(["ood", str(run), "--outside", "digits", *only]) == 0


def test_vectors_and_a_known_background(points, tmp_path, capsys):
    far = np.full((4, 2), 1e30)
    np.save(tmp_path / "far.npy", far.astype(np.float32))
    options = ["--background", str(points), *FEW]
    assert main(["ood", str(points), "--outside", str(tmp_path / "far.npy"), *options]) == 0
    printed = capsys.readouterr().out
    assert "Complexity" not in printed and "LikelihoodRatio" in printed
    line = next(line for line in printed.splitlines() if line.startswith("LogProb"))
    assert "AUROC 1.0000" in line
    assert main(["ood", str(points), "--outside", "pinwheel", "--only", "LogProb", *FEW]) == 0


def test_what_is_refused_in_one_line(run, points, tmp_path, capsys):
    start = ["ood", str(run), "--outside"]
    assert "is no path, and no data set" in fails([*start, "nothing"], capsys)
    assert "vectors, and the model is of images" in fails([*start, "pinwheel"], capsys)
    assert "must end in .csv" in fails([*start, "digits", "--scores", "x.txt"], capsys)
    assert "this model has the scores" in fails([*start, "digits", "--only", "Nothing"], capsys)
    assert "at least 2" in fails([*start, "digits", "--n", "1"], capsys)
    np.save(tmp_path / "large.npy", np.zeros((3, 9, 9), dtype=np.uint8))
    assert "shape" in fails([*start, str(tmp_path / "large.npy")], capsys)
    np.save(tmp_path / "bright.npy", np.full((3, 8, 8), 200))
    assert "0 .. 16" in fails([*start, str(tmp_path / "bright.npy")], capsys)
    vectors = ["ood", str(points), "--outside"]
    assert "images, and the model is of vectors" in fails([*vectors, "digits"], capsys)
    assert "Complexity" in fails([*vectors, "pinwheel", "--only", "Complexity"], capsys)
    flow = VectorFlow(2, blocks=1, hidden=4)
    flow.initialize(torch.randn(9, 2))
    flow.eval().save(tmp_path / "flow.pt")
    alone = ["ood", str(tmp_path / "flow.pt"), "--outside", "pinwheel"]
    assert "not a run directory" in fails(alone, capsys)


def test_samples_from_elsewhere_stay_as_they_are(points, tmp_path, capsys):
    rows = tmp_path / "separation.csv"
    np.savetxt(rows, np.zeros((4, 2)), delimiter=",")
    before = rows.read_bytes()
    start = ["ood", str(points), "--outside", str(rows)]
    assert "--scores" in fails([*start, "--scores", str(rows)], capsys)
    assert "would overwrite" in fails([*start, "--out", str(tmp_path)], capsys)
    among = ["ood", str(points), "--outside", str(tmp_path), "--out", str(tmp_path / "out")]
    assert "whose images are read" in fails(among, capsys)
    assert rows.read_bytes() == before and [*tmp_path.iterdir()] == [rows]


def test_named_images_become_those_of_the_model():
    """Other sizes, more channels, and other grey levels; black and white stay."""
    digits = named_samples("digits", Event((1, 8, 8), 17, 0))
    wide = named_samples("digits", Event((3, 16, 16), 256, 0))
    assert wide.shape == (len(digits), 3, 16, 16) and int(wide.max()) <= 255
    assert torch.equal(wide[:, 0], wide[:, 2])
    same = named_samples("digits", Event((1, 8, 8), 256, 0))
    assert torch.equal(same, (digits * 255 / 16).round().long())
    assert abs(float(wide.double().mean()) - float(same.double().mean())) < 2
    with pytest.raises(ValueError, match="columns"):
        named_samples("pinwheel", Event((3,), None, 0))
