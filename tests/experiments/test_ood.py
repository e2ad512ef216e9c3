"""The experiments on outliers: what they ask about, and both commands on small sizes."""

import json

import pytest
import torch

from experiments.ood.__main__ import main
from experiments.ood.outliers import outside_images
from iresflow.data.queries import Event
from iresflow.models import pretrained

pytestmark = pytest.mark.usefixtures("float32")


def test_images_that_are_made():
    test = torch.randint(0, 17, (30, 1, 8, 8)).to(torch.uint8)
    event = Event((1, 8, 8), 17, 0)

    def made(name):
        return outside_images(name, event, test, 20, 0)

    for name in ("permuted", "inverted", "constant", "noise"):
        images = made(name)
        assert images.shape == (20, 1, 8, 8) and torch.equal(images, made(name))
        assert 0 <= int(images.min()) and int(images.max()) <= 16
    permuted = made("permuted")
    assert torch.equal(
        permuted.flatten(1).sort().values, test[:20].long().flatten(1).sort().values
    )
    assert not torch.equal(permuted, test[:20].long())
    # One order for all images: the pixels' columns are the same ones.
    columns = {tuple(c.tolist()) for c in test[:20].long().flatten(1).T}
    assert columns == {tuple(c.tolist()) for c in permuted.flatten(1).T}
    assert torch.equal(made("inverted") + test[:20], torch.full((20, 1, 8, 8), 16))
    constant = made("constant").flatten(1)
    assert bool((constant == constant[:, :1]).all()) and len(set(constant[:, 0].tolist())) > 5
    assert abs(float(made("noise").double().mean()) - 8) < 4 * 17 / 12**0.5 / 1280**0.5


def test_images_in_colour_have_one_colour_each():
    event = Event((3, 8, 8), 17, 0)
    grey = outside_images("digits", event, torch.zeros(1, 3, 8, 8), 20, 0)
    made = outside_images("coloured-digits", event, torch.zeros(1, 3, 8, 8), 20, 0)
    assert made.shape == grey.shape == (20, 3, 8, 8) and bool((made <= grey).all())
    brightest = made.flatten(2).amax(2).double() / grey.flatten(2).amax(2)
    expected = grey.double() * brightest[:, :, None, None]
    assert float((made - expected).abs().max()) <= 1  # both are rounded
    assert len({tuple(colour.tolist()) for colour in brightest}) > 15
    assert torch.equal(made, outside_images("coloured-digits", event, grey, 20, 0))


def test_images_of_a_packaged_flow(tmp_path):
    scores = ["--scores", '["LatentFit"]', "--test", "20", "--fit", "30"]
    command = ["images", "--into", str(tmp_path), "--pairs", '["digits:inverted"]', *scores]
    assert main(command) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())["separation"]
    assert row["AUROC"] > 0.95
    assert not (tmp_path / "runs").exists()  # nothing was trained


def test_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "names", list)  # none is packaged: one is trained
    some = ["--scores", '["LogProb","Complexity","LatentFit","State of complexity and norm"]']
    arguments = ["images", "--into", str(tmp_path), "--quick", *some]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["separation"]
    assert {row["outside"] for row in rows} == {"inverted", "constant"}
    assert len(rows) == 8 and all(row["low"] <= row["AUROC"] <= row["high"] for row in rows)
    assert (tmp_path / "digits-inverted.png").is_file()
    files = list((tmp_path / "scores").rglob("*.pt"))
    times = [file.stat().st_mtime_ns for file in files]
    capsys.readouterr()
    assert main(arguments) == 0  # goes on: nothing is trained or scored again
    assert "trained " not in capsys.readouterr().out
    assert [file.stat().st_mtime_ns for file in files] == times
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["separation"] == rows


def test_tables(tmp_path):
    assert main(["tables", "--quick", "--into", str(tmp_path), "--seeds", "1"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["tables"]
    methods = {row["method"] for row in rows}
    assert {"IsolationForest", "LocalOutlierFactor", "LogProb", "DensityOfStates"} <= methods
    forest = {r["table"]: r["AUROC"] for r in rows if r["method"] == "IsolationForest"}
    assert forest["breast cancer"] > 0.9 and len(forest) == 2
