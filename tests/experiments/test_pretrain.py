"""Packed models are those of their runs, with the scores of then and nothing of the machine."""

import json
import warnings

import pytest
import torch

import iresflow
from experiments import pretrain
from iresflow.cli import main
from iresflow.models import pretrained
from iresflow.models.files import read_file

SMALL = (
    "--data.name digits --model.blocks [0,1] --model.hidden 4 --training.steps 3 "
    "--model.dequantization_blocks 1 "
    "--training.compile false --training.validate_every 3 --training.validation_samples 16"
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The directory of a packed model, and the run that it is of."""
    folder = tmp_path_factory.mktemp("pretrain")
    recipes = {"small": tuple(SMALL.split())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "RECIPES", recipes)
        told = ["small", "--runs", str(folder / "runs"), "--out", str(folder / "weights")]
        pretrain.main(told)
    return folder / "weights", folder / "runs" / "0000-small"


def test_a_packed_model_is_the_best_of_its_run_with_its_score(packed, monkeypatch):
    weights, run = packed
    monkeypatch.setattr(pretrained, "FOLDER", weights)
    assert pretrained.names() == ["small"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a certificate of other weights
        model = iresflow.pretrained("small")
    best = iresflow.load(run / "checkpoints" / "best.pt")
    for name, value in best.state_dict().items():
        held = value.half().to(value.dtype) if name.endswith(".left") else value
        assert torch.equal(model.state_dict()[name], held), name
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model.eval().log_prob(x), best.eval().log_prob(x))
    known = pretrained.described("small")
    score = json.loads((run / "evaluation.json").read_text())
    assert (known.score, known.standard_error) == (score["mean"], score["standard_error"])
    assert (known.data, known.unit, known.samples) == ("digits", "bits/dim", 360)
    assert known.command == f"iresflow train {SMALL}"


def test_nothing_of_the_machine_or_of_training_is_packed(packed):
    weights, run = packed
    content = read_file(weights / "small.pt")
    assert "training" not in content and str(run.parent) not in repr(content)
    assert content["options"]["data"]["root"] is None


def test_a_name_stands_for_the_model_where_no_such_path_is(packed, tmp_path, monkeypatch, capsys):
    weights, run = packed
    monkeypatch.setattr(pretrained, "FOLDER", weights)
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "small", "--n", "4"]) == 0
    assert main(["certify", "small"]) == 0
    assert main(["evaluate", "small", "--n", "20"]) == 0
    assert (tmp_path / "samples.png").is_file()
    score = json.loads((tmp_path / "small-evaluation-test-20.json").read_text())
    assert score["samples"] == 20 and score["checkpoint"] == str(weights / "small.pt")
    (tmp_path / "small").mkdir()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["sample", "small"])
    assert "no checkpoint in small/checkpoints" in capsys.readouterr().err


def test_training_starts_from_a_packed_model(packed, tmp_path, monkeypatch, capsys):
    weights, _ = packed
    monkeypatch.setattr(pretrained, "FOLDER", weights)
    assert main(["train", *SMALL.split(), "--runs", str(tmp_path), "--init", "small"]) == 0
    assert f"weights     {weights / 'small.pt'}" in capsys.readouterr().out


def test_too_large_a_model_is_refused(packed, tmp_path, monkeypatch):
    _, run = packed
    monkeypatch.setitem(pretrain.RECIPES, "small", ())
    before = pretrain.pack("small", run, tmp_path).read_bytes()
    monkeypatch.setattr(pretrain, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"small would take [\d,]+ bytes, and 1,000 are allowed"):
        pretrain.pack("small", run, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["small.pt"]
    assert (tmp_path / "small.pt").read_bytes() == before  # the one that was there


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"no pretrained model is called digit\b: there are"):
        iresflow.pretrained("digit")
