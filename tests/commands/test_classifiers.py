"""The verbs on invertible classifiers and on flows of classes."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from iresflow.cli import main
from iresflow.commands.samples.metamers import others
from iresflow.training.checkpoint import find_checkpoint

pytestmark = pytest.mark.usefixtures("float32")

ROLL = ["--data.name", "swiss-roll", "--data.count", "200"]
TINY = """--training.steps 12 --training.batch_size 16 --training.validate_every 6
--training.validation_samples 16 --training.log_every 4 --training.warmup_steps 2
--model.blocks 1,1,1 --model.hidden 8 --data.test 24 --model.activation elu""".split()


def trained(runs, *arguments):
    assert main(["train", *TINY, "--runs", str(runs), *arguments]) == 0
    return sorted(runs.iterdir())[-1]


def test_classifiers_are_trained_evaluated_and_certified(tmp_path, capsys):
    run = trained(
        tmp_path, "--objective", "classification", "--model.pad", "3", "--data.shift", "1"
    )
    said = capsys.readouterr().out
    assert "shift of training images" in said and "bits/dim" not in said
    assert "invertible" in said and "certified radius" in said and "nuisance" not in said
    assert "density" not in said  # of padded images
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("train/accuracy" in row for row in metrics)
    assert any("validation/accuracy" in row for row in metrics)
    assert list((run / "samples").glob("*-reconstructions.png"))
    scores = json.loads((run / "evaluation.json").read_text())
    assert scores["samples"] == 24 and 0 <= scores["error"] <= 1 and scores["split"] == "test"
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "evaluation.json").read_text()) == scores
    assert main(["certify", str(run)]) == 0
    assert "certified: every block" in capsys.readouterr().out
    assert main(["certify", str(run), "--plots"]) == 0
    assert "left out: the figures that need data" in capsys.readouterr().out
    assert (run / "certificate" / "singular-values.png").stat().st_size > 0
    assert f"next        iresflow sample {run} --reconstruct" in said
    assert main(["sample", str(run), "--reconstruct", "--n", "14", "--tol", "1e-4"]) == 0
    picture = run / "samples" / "reconstructions.png"
    assert f"written              {picture}" in capsys.readouterr().out
    pixels = np.asarray(Image.open(picture))[::8, ::8, 0].astype(int)  # magnified by 8
    assert pixels.shape == (4 * 9 + 1, 12 * 9 + 1)  # two lines of images above what came back
    for line in (0, 18):
        upper, lower = pixels[line : line + 9], pixels[line + 9 : line + 18]
        assert upper.max() > 200 and abs(upper - lower).max() <= 1
    for wrong, message in (
        ([], "metamers need --model.read_out simplified"),
        (["--interpolate"], "are for flows"),
        (["--reconstruct", "--temperature", "0.5"], "a classifier has no density"),
        (["--reconstruct", "--out", str(tmp_path / "some.npz")], "is a picture, .png"),
    ):
        with pytest.raises(SystemExit):
            main(["sample", str(run), *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ood", str(run), "--outside", "digits"])
    assert "this is for flows" in capsys.readouterr().err


def test_independence_is_judged_by_a_fresh_classifier_and_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("iresflow.training.probing.STEPS", 20)
    options = ["--objective", "independence", "--model.read_out", "simplified"]
    run = trained(tmp_path, *options)
    said = capsys.readouterr().out
    assert "semantic    a fresh classifier" in said and "nuisance    a fresh classifier" in said
    assert list((run / "samples").glob("*-metamers.png"))
    assert main(["sample", str(run), "--n", "6"]) == 0
    said = capsys.readouterr().out
    assert (
        "same decision        6 of 6 metamers" in said and "pixel range          left by" in said
    )
    assert (run / "samples" / "metamers.png").is_file()
    assert main(["train", "--resume", str(run), "--training.steps", "14"]) == 0
    assert "12 of 14" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(run), "--nuisance_weight", "0.5"])
    assert "nuisance_weight (1.0, not 0.5)" in capsys.readouterr().err


def test_a_hybrid_says_how_likely_samples_are(tmp_path, capsys):
    run = trained(tmp_path, "--objective", "hybrid", "--model.blocks", "1,1")
    said = capsys.readouterr().out
    found = re.search(r"density +([0-9.]+) bits/dim \+- ([0-9.]+) over 24 samples", said)
    assert found is not None and 0 < float(found[1]) < 9 and 0 < float(found[2]) < 1
    assert main(["evaluate", str(run)]) == 0
    assert found[0] in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    nats = [row["validation/nats_per_dim"] for row in rows if "validation/nats_per_dim" in row]
    # The prior that was trained for a few steps is no better than the best, on other samples.
    assert float(found[1]) < nats[-1] / math.log(2) + math.log2(17) + 0.5


def test_partners_of_metamers_are_the_next_of_another_class():
    labels = torch.tensor([0, 0, 1, 1, 1, 0])
    assert others(labels).tolist() == [2, 2, 5, 5, 5, 2]
    with pytest.raises(ValueError, match="all 3 images are of one class"):
        others(torch.ones(3))


def test_without_a_limit_the_verbs_say_so(tmp_path, capsys):
    run = trained(tmp_path, "--objective", "classification", "--model.vanilla", "true")
    assert "NOT certified" in capsys.readouterr().out
    assert main(["certify", str(run)]) == 1
    assert find_checkpoint(run).is_file()


def test_a_density_of_each_class_classifies(tmp_path, capsys):
    run = trained(tmp_path, "--objective", "generative", "--model.blocks", "1,1")
    assert "by Bayes' rule: error" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--n", "8"]) == 0
    assert "by Bayes' rule: error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objective", "hybrid", "--model.pad", "2"], "pad=0"),
        (["--objective", "independence"], "simplified"),
        (["--objective", "classification", *ROLL], "needs labels"),
        (["--objective", "generative", *ROLL], "needs labels"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", *TINY, "--runs", str(tmp_path), *options])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
