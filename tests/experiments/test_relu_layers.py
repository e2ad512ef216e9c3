"""The commands of the first two experiments, on the small digits of scikit-learn."""

import csv
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from experiments.relu.base import Report, Samples
from experiments.relu.preimage import circles
from iresflow.cli import main

pytestmark = pytest.mark.usefixtures("float32")

PREIMAGE = """--images.name digits --images.test 60 --resolution 4 --hidden [90,20] --epochs 1
--batch_size 50 --samples 6 --attacked [10,10] --attacked_epochs 2 --attacked_batch_size 50
--originals 1 --targets 1 --train_samples 200""".split()

STABILITY = """--images.name digits --images.test 30 --digits.name digits --samples 2 --window 3
--whole_samples 2 --epochs 1 --train_images 60 --hidden [90,20] --mlp_epochs 1
--train_samples 60""".split()


def is_picture(file):
    with Image.open(file) as image:
        return image.size[0] > 300


def test_preimage_writes_tables_and_figures(tmp_path, capsys, monkeypatch):
    few = circles.two_circles(150, 0)
    monkeypatch.setattr(circles, "two_circles", lambda count, seed: few)
    monkeypatch.setattr(circles, "ATTEMPTS", 4)  # so few points teach no network well enough
    assert main(["relu", "preimage", *PREIMAGE, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "0000-relu-preimage"
    assert f"run         {run}" in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())
    assert set(results) - {"reach"} == {"circles", "attacks", "networks", "kinds", "strip"}
    assert all(is_picture(run / f"{name}.png") for name in ("circles", "attacks", "kinds"))
    assert all(row["largest difference of activations"] <= 1e-6 for row in results["attacks"])
    kinds = {row["active units"]: row["kind"] for row in results["kinds"]}
    assert all(kind == "singleton" for active, kind in kinds.items() if active >= 64)
    assert all(kind != "empty" for kind in kinds.values())
    with (run / "kinds.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results["kinds"])
    text = (run / "results.md").read_text()
    assert "![" in text and "| active units |" in text
    # The configuration that it wrote does the same again.
    again = ["--config", str(run / "config.yaml"), "--runs", str(tmp_path), "--resolution", "2"]
    assert main(["relu", "preimage", *again]) == 0
    repeated = json.loads((tmp_path / "0001-relu-preimage" / "results.json").read_text())
    assert repeated["strip"] == results["strip"]


def test_stability_writes_tables_and_figures(tmp_path):
    arguments = ["relu", "stability", *STABILITY, "--runs", str(tmp_path), "--name", "mine"]
    assert main(arguments) == 0
    run = tmp_path / "0000-mine"
    results = json.loads((run / "results.json").read_text())
    tables = {"mlp-stages", "networks", "counting", "convolutional-stages"}
    assert set(results) == tables | {"convolutional-whole-stages"}
    assert len(list(run.glob("*.png"))) == 9
    whole = [row for row in results["convolutional-whole-stages"] if row["network"] == "WideCIFAR"]
    assert [row["output units"] for row in whole[::2]] == [2048, 1024, 1024, 512, 512, 256]
    assert all(row["non-zero singular values"] <= 64 for row in whole)
    moved = results["convolutional-stages"]
    assert all(row["non-zero singular values"] <= 9 for row in moved)
    for row in (*whole, *moved):
        bound = row["bound of the smallest (lemma 3.5)"]
        assert bound is None or row["smallest non-zero"] <= bound * (1 + 1e-9)


@pytest.mark.parametrize("name", ["frames", "inversion", "preimage", "stability"])
def test_configs_hold_the_defaults_and_quick_is_smaller(name):
    experiment = import_module(f"experiments.relu.{name}")
    values = yaml.safe_load(Path(experiment.__file__).parent.with_suffix(".yaml").read_text())
    settings = experiment.Settings()
    for section, fields in experiment.DATA.items():
        assert values.pop(section).items() >= fields.items()
    for field, value in values.items():
        expected = getattr(settings, field)
        assert value == (list(expected) if isinstance(expected, tuple) else expected), field
    small = experiment.quick(settings)
    assert small != settings and experiment.quick(small) == small


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["preimages"], "unknown experiment 'preimages'"),
        (["preimage", "--sampels", "3"], "the nearest is --samples"),
        (["preimage", "--images.flip", "true"], "images.flip"),
        (["preimage", "--images.name", "mnits"], "did you mean 'mnist'"),
        (
            ["preimage", "--images.name", "mnist", "--images.root", "nowhere"],
            "point --images.root",
        ),
        (["stability", "--images.name", "two-moons", "--digits.name", "digits"], "need images"),
        (["preimage", "--images.name", "checkerboard", "--resolution", "2"], "no labels"),
    ],
)
def test_refuses_in_one_line(arguments, message, capsys, tmp_path):
    small = ["--runs", str(tmp_path), "--hidden", "[4]"] if arguments[0] != "preimages" else []
    small += ["--mlp_epochs", "0"] if arguments[0] == "stability" else []
    with pytest.raises(SystemExit):
        main(["relu", *arguments, *small])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


def test_help_lists_the_experiments(capsys):
    assert main(["relu", "--help"]) == 0
    assert "preimage" in capsys.readouterr().out
    assert main(["relu"]) == 2


def test_report(tmp_path):
    report = Report(tmp_path, "Title")
    report.table("rows", [{"a": 1, "b": None}, {"a": 0.123456, "b": "x"}], "What it is.")
    report.numbers("few", {"c": 2.0})
    assert json.loads((tmp_path / "results.json").read_text())["few"] == {"c": 2.0}
    page = (tmp_path / "results.md").read_text()
    assert "# Title" in page and "| 0.1235 | x |" in page and "- c: 2" in page
    for rows in ([], [{"a": 1}, {"b": 2}]):
        with pytest.raises(ValueError, match="at least one row"):
            report.table("wrong", rows)


def test_samples_without_labels_say_so():
    samples = Samples("mine", torch.zeros(2, 3), None, torch.zeros(1, 3), None)
    with pytest.raises(ValueError, match="mine has no labels"):
        samples.labels()
