"""Training that starts from other weights."""

import re

import pytest
import torch
import yaml
from helpers import small_vector_flow

from iresflow import CheckpointError, VectorFlow
from iresflow.cli import main
from iresflow.models.storage import read_file
from iresflow.training.start import take_weights

pytestmark = pytest.mark.usefixtures("float32")

TINY = """--data.name two-moons --data.count 300 --model.blocks 2 --model.hidden 6
--training.batch_size 16 --training.validate_every 2 --training.validation_samples 16
--training.ema_decay 0""".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps in float32, as users have them."""
    runs = tmp_path_factory.mktemp("runs")
    torch.set_default_dtype(torch.float32)
    assert main(["train", *TINY, "--training.steps", "2", "--runs", str(runs)]) == 0
    return runs / "0000-two-moons"


def weights(run, name="last"):
    return read_file(run / "checkpoints" / f"{name}.pt")["model"]["state"]


def still(tmp_path, init, *more):
    """Trains a step that moves nothing, and so keeps what it started from."""
    frozen = ["--training.learning_rate", "1e-30", "--training.steps", "1", "--seed", "5"]
    arguments = ["train", *TINY, *frozen, "--runs", str(tmp_path), "--init", str(init), *more]
    assert main(arguments) == 0
    return sorted(tmp_path.glob("*-two-moons"))[-1]


@pytest.mark.parametrize("source", ["run", "checkpoint", "flow"])
def test_training_starts_from_the_weights_it_is_given(run, source, tmp_path, capsys):
    sources = {"run": run, "checkpoint": run / "checkpoints/last.pt", "flow": tmp_path / "f.pt"}
    flow = VectorFlow(2, 2, 6, coeff=0.98, learned_prior=False, activation="sine-cosine")
    flow.load_state_dict(weights(run))
    flow.save(sources["flow"])
    new = still(tmp_path, sources[source])
    printed = capsys.readouterr().out
    assert re.search(r"^weights +\S+\.pt: VectorFlow, \d+ tensors", printed, re.M)
    assert ("of step 2" in printed) == (source != "flow")
    expected = weights(run, "best" if source == "run" else "last")
    for name, value in weights(new).items():
        if name.endswith(("weight", "bias", "shift", "log_scale")):
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    other = still(tmp_path / "control", run, "--init", "null")
    assert not all(torch.equal(weights(other)[k], v) for k, v in expected.items() if "weight" in k)
    config = yaml.safe_load((new / "config.yaml").read_text())
    assert config["init"] == str(sources[source])


def test_a_resumed_run_does_not_start_again(run, tmp_path, capsys):
    new = still(tmp_path, run)
    moved = run.rename(run.with_name("moved"))
    try:
        capsys.readouterr()
        assert main(["train", "--resume", str(new), "--training.steps", "2"]) == 0
        assert "weights  " not in capsys.readouterr().out
        with pytest.raises(SystemExit):
            main(["train", "--resume", str(new), "--init", str(moved)])
        assert "other values of init" in capsys.readouterr().err
    finally:
        moved.rename(run)


def test_weights_of_another_shape_are_one_error(run, tmp_path, capsys):
    for more, expected in (
        (["--model.hidden", "7"], "there and (7"),
        (["--model.blocks", "3"], "is missing there and"),
        (["--data.name", "digits", "--data.count", "null", "--model.blocks", "1,1"], "more"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["train", *TINY, "--runs", str(tmp_path), "--init", str(run), *more])
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 1 and expected in line and len(line) < 600
        assert "Pass the options of model" in line
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_weights_are_named(run, tmp_path, capsys):
    (tmp_path / "text.pt").write_text("no weights")
    for source, expected in ((tmp_path / "none", "does not exist"), (tmp_path / "text.pt", "cut")):
        with pytest.raises(SystemExit):
            main(["train", *TINY, "--runs", str(tmp_path / "runs"), "--init", str(source)])
        assert expected in capsys.readouterr().err


def test_settings_that_no_shape_shows_are_told(tmp_path):
    small_vector_flow(activation="elu").save(tmp_path / "flow.pt")
    flow = VectorFlow(3, 3, 8, activation="tanh", coeff=0.5)
    with pytest.warns(UserWarning, match=r"activation \(elu there, tanh here\), coeff \(0.97 "):
        take_weights(flow, tmp_path / "flow.pt")
    with pytest.raises(CheckpointError, match=r"is \(3,\) there and \(4,\) here"):
        take_weights(VectorFlow(4, 3, 8, activation="elu"), tmp_path / "flow.pt")
