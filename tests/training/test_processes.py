"""Several processes, started as their users start them, against one process alone."""

import json
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
import worker
from interpreters import run_program
from torch.distributed.elastic.multiprocessing.api import SignalException

from iresflow.cli import main
from iresflow.data import load_dataset
from iresflow.errors import RunError
from iresflow.training.checkpoint import load_model, load_training
from iresflow.training.loop import processes
from iresflow.training.loop.processes import SIZES, Alone, join_processes
from iresflow.training.runs.directory import RunDirectory

WORKER = Path(worker.__file__)

pytestmark = [
    pytest.mark.usefixtures("float32"),
    pytest.mark.skipif(
        not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo"
    ),
]


def launch(directory, launcher, *arguments):
    """Runs the worker in two processes on the CPU; returns the exit code and what was printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = {
        "torchrun": ["--nproc_per_node=2", f"--master_port={port}"],
        "accelerate": ["--multi_gpu", "--num_processes=2", "--num_machines=1"]
        + ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"],
    }
    command = [launcher, *words[launcher], str(WORKER), *map(str, arguments)]
    environment = {"ACCELERATE_USE_CPU": "1"}
    file = directory / "launches.json"
    file.write_text(json.dumps([{"command": command, "environment": environment, "host": None}]))
    done = run_program(WORKER.with_name("launchers.py"), file)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes have left behind, and what was printed."""
    directory = tmp_path_factory.mktemp("together")
    code, printed = launch(directory, "accelerate", "agree", directory)
    assert (directory / "bad-0").is_file(), printed
    return directory, code, printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    trainer = worker.new_trainer(tmp_path_factory.mktemp("alone"))
    trainer.train()
    return trainer


def assert_close(a, b):
    assert a.keys() == b.keys()
    for key in a:
        # A singular vector moves by what its weight moves, over the gap to the next value.
        atol = 1e-4 if key.endswith(".left") else 1e-5
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=atol, msg=key)


def loaded(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["equal", "accumulated"])
def test_two_processes_give_the_weights_of_one(together, alone, name):
    states = [loaded(together[0] / f"{name}-{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert_close(states[0], alone.model.state_dict())
    # A control: a step less is told apart.
    start = worker.new_trainer(together[0], steps=7)
    start.train()
    with pytest.raises(AssertionError):
        assert_close(states[0], start.model.state_dict())


def test_two_processes_give_the_average_and_the_metrics_of_one(together, alone):
    assert_close(loaded(together[0] / "average.pt"), alone.average.state_dict())
    lines = [
        r.metrics_file.read_text() for r in (RunDirectory(together[0] / "0000-run"), alone.run)
    ]
    ours, theirs = ([float(x) for x in re.findall(r'bits/dim": ([\d.]+)', text)] for text in lines)
    assert len(ours) >= 6 and ours == pytest.approx(theirs, abs=1e-5)


def test_two_processes_give_the_score_of_one(together):
    model, _ = load_model(
        together[0] / "0000-run" / "checkpoints" / "last.pt", torch.device("cpu")
    )
    score = worker.score_of(model, load_dataset("digits"), Alone())
    assert score.rounds == 3
    for rank in (0, 1):
        assert (together[0] / f"score-{rank}").read_text() == repr(score)


def test_a_limit_in_minutes_ends_both_after_the_same_step(together):
    ours, theirs = (loaded(together[0] / f"timed-{rank}.pt") for rank in (0, 1))
    assert ours.pop("step") == theirs.pop("step") == len(ours["rates"])
    rates = ours.pop("rates")
    assert rates == theirs.pop("rates")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_signal_to_one_process_ends_both_behind_the_same_step(together):
    steps = {(together[0] / f"interrupted-{rank}").read_text() for rank in (0, 1)}
    assert steps == {str(worker.SIGNAL_AT + 1)}
    checkpoint = together[0] / "0003-run" / "checkpoints" / "last.pt"
    assert load_training(checkpoint)[1].step == worker.SIGNAL_AT + 1


def test_a_bad_loss_in_one_process_stops_both_with_its_step(together):
    for rank in (0, 1):
        message = (together[0] / f"bad-{rank}").read_text()
        assert message.startswith(f"the loss is nan at step {worker.BAD_AT}; the last good")


def test_an_error_in_one_process_ends_all_with_one_message(together):
    _, code, printed = together
    assert code != 0
    (message,) = re.findall(r"error: .*", printed)
    assert message.startswith("error: the second process has no data (process 1 of 2, on ")


def test_a_killed_process_ends_the_run_which_then_goes_on_with_nothing_lost(tmp_path, capsys):
    options = """--model.blocks [1,1] --model.hidden 4 --model.dequantization_blocks 1
        --training.steps 8 --data.flip true
        --training.batch_size 9 --training.validate_every 2 --training.validation_samples 8
        --training.log_every 1 --log_det.terms 4 --log_det.tol 0 --data.test 12""".split()
    code, printed = launch(tmp_path, "torchrun", "die", *options, "--runs", tmp_path / "killed")
    assert code != 0
    # The launcher may have been faster than the process that lost its companion.
    messages = re.findall(r"error: .*", printed)
    assert all("another process of this run has ended" in m for m in messages), printed
    run = tmp_path / "killed" / "0000-digits"
    assert load_training(run / "checkpoints" / "last.pt")[1].step == worker.KILLED_AT // 2 * 2
    # It goes on with another number of processes than it was begun with.
    assert main(["train", "--resume", str(run)]) == 0
    assert f"steps       {worker.KILLED_AT // 2 * 2} of 8" in capsys.readouterr().out
    assert main(["train", *options, "--runs", str(tmp_path / "whole")]) == 0
    states = [
        load_training(path / "checkpoints" / "last.pt")[0]
        for path in (run, tmp_path / "whole" / "0000-digits")
    ]
    for part in ("flow", "average"):
        assert_close(states[0][part], states[1][part])
    steps = re.findall(r'"step": (\d+), "train/bits', (run / "metrics.jsonl").read_text())
    assert steps == [str(step) for step in range(1, 9)]


def test_a_launcher_that_ends_its_processes_is_no_fault(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_Team", Alone)
    ended = SignalException("Process 7 got signal: 15", signal.SIGTERM)
    with pytest.raises(SystemExit) as raised, join_processes():
        raise ended
    assert raised.value.code == 128 + signal.SIGTERM


def test_one_process_needs_no_launcher_and_no_group(monkeypatch):
    for name in SIZES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with join_processes() as alone:
        assert isinstance(alone, Alone) and alone.main and alone.count == 1
        assert alone.gather(3) == [3] and alone.on_main(lambda: 4) == 4
    assert not torch.distributed.is_initialized()
    assert "accelerate" not in sys.modules  # no other test imports it either


def test_values_that_should_be_the_same_are_compared(monkeypatch):
    alone = Alone()
    alone.require_same(1, "the data")
    monkeypatch.setattr(Alone, "gather", lambda self, value: [value, 2])
    with pytest.raises(RunError, match="the data differ between process 0 and process 1"):
        alone.require_same(1, "the data")
