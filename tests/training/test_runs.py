"""Runs: whose they are, what is written of them, and how they go on after a kill."""

import errno
import json
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from interpreters import run_program

import iresflow
from iresflow import CheckpointError, VectorFlow, fit
from iresflow.cli import main
from iresflow.errors import RunError
from iresflow.models.files import read_file, write_file
from iresflow.training.runs import lock
from iresflow.training.runs.directory import RunDirectory
from iresflow.training.runs.lock import Lock, locked

pytestmark = pytest.mark.usefixtures("float32")

ROOT = Path(iresflow.__file__).parents[1]
TINY = """--model.blocks [1,1] --model.hidden 4 --model.dequantization_blocks 1
--training.steps 5 --training.batch_size 8
--training.validate_every 3 --training.validation_samples 8 --training.log_every 2
--training.warmup_steps 2 --log_det.terms 3 --log_det.tol 0 --data.test 12""".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that nothing has interrupted."""
    torch.set_default_dtype(torch.float32)
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *TINY, "--runs", str(runs)]) == 0
    return runs / "0000-digits"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def fails(arguments, capsys):
    """The one line that a failing command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (1, 2)
    messages = [m for m in capsys.readouterr().err.splitlines() if m.startswith("error: ")]
    assert len(messages) == 1
    return messages[0]


def metrics(run):
    """The lines of a run's metrics, without what is a time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "train/steps_per_second"} for row in lines]


# Directories.


def test_runs_that_start_at_once_get_numbers_of_their_own(tmp_path):
    for turn in range(20):
        start = threading.Barrier(8)

        def create(number, start=start, parent=tmp_path / str(turn)):
            start.wait()
            return RunDirectory.create(parent, f"name-{number % 3}").path.name

        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(create, range(8)))
        assert sorted(int(name[:4]) for name in names) == list(range(8)), names
        assert sorted(p.name for p in (tmp_path / str(turn)).iterdir()) == sorted(names)


def test_numbers_go_on_after_a_kill_and_after_ten_thousand(tmp_path):
    (tmp_path / ".0001").mkdir()  # a process was killed while it took this number
    (tmp_path / "0000-x").mkdir()
    assert RunDirectory.create(tmp_path, "x").path.name == "0002-x"
    (tmp_path / "10000-x").mkdir()
    assert RunDirectory.create(tmp_path, "x").path.name == "10001-x"


# Locks.


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    path = tmp_path / ".lock"
    with locked(path, "trains here"):
        holder = rf"another process trains here: process {os.getpid()} on \S+\. Wait"
        with pytest.raises(RunError, match=holder):
            Lock(path, "trains here").acquire()
    assert not path.exists()
    with locked(path, "trains here"):
        pass


def test_a_lock_goes_with_its_process(tmp_path):
    code = """
import os, sys, time
from pathlib import Path
from iresflow.training.runs.lock import Lock
Lock(Path(sys.argv[1]), "x").acquire()
Path(sys.argv[2]).write_text(str(os.getpid()))
time.sleep(600)
"""
    path, held = tmp_path / ".lock", tmp_path / "held"
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_program, code, path, held)
        while not (held.exists() and held.read_text()):
            assert not other.done(), other.result().stderr
            time.sleep(0.01)
        with pytest.raises(RunError, match=rf"process {held.read_text()} on "):
            Lock(path, "trains here").acquire()
        os.kill(int(held.read_text()), signal.SIGKILL)
        assert other.result().returncode == -signal.SIGKILL
    assert path.exists()  # and keeps nobody out
    with locked(path, "trains here"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with (
        pytest.warns(UserWarning, match="No locks available") as caught,
        locked(tmp_path / ".lock", "trains here"),
    ):
        pass
    assert len(caught) == 1
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(UserWarning, match="can't be locked"), locked(tmp_path / ".lock", "x"):
        pass
    with pytest.raises(RunError, match="could not lock"):
        Lock(tmp_path / "missing" / ".lock", "x").acquire()


def test_one_process_at_a_time_trains_or_evaluates(run, capsys):
    with RunDirectory(run).locked():
        message = fails(["train", "--resume", str(run), "--training.steps", "6"], capsys)
    assert f"another process trains in {run}: process {os.getpid()} on" in message
    with locked(run / "evaluation-test-5.lock", "computes it"):
        message = fails(["evaluate", str(run), "--n", "5"], capsys)
    assert "another process computes" in message
    assert main(["evaluate", str(run), "--n", "5"]) == 0
    assert not list(run.glob("*.lock")) and not (run / ".lock").exists()


def test_fit_holds_its_run(tmp_path):
    x, options = torch.randn(80, 3), {"steps": 2, "bar": False, "run": tmp_path / "run"}

    def second(step, model, score):
        with pytest.raises(RunError, match="another process trains in"):
            fit(VectorFlow(3, 1, 4), x, resume=True, **options)

    fit(VectorFlow(3, 1, 4), x, on_validation=second, **options)
    fit(VectorFlow(3, 1, 4), x, resume=True, **options)


# What a run is of.


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("model", "coeff", 0.5, r"model.coeff \(0.9\d*, not 0.5\)"),
        ("data", "flip", True, r"data.flip \(False, not True\)"),
        ("log_det", "terms", 9, r"log_det.terms \(3, not 9\)"),
        ("training", "optimizer", "sgd", r"training.optimizer \(adam, not sgd\)"),
        (None, "seed", 5, r"seed \(0, not 5\)"),
    ],
)
def test_an_edited_configuration_is_told_from_the_run(run, section, name, value, words, capsys):
    values = yaml.safe_load((run / "config.yaml").read_text())
    (values if section is None else values[section])[name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    message = fails(["train", "--resume", str(run)], capsys)
    assert re.search("was trained with other values of " + words, message), message


@pytest.mark.filterwarnings("default")
def test_an_edited_option_of_training_is_told_and_taken(run, capsys):
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["training"]["steps"] = 6
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "--resume", str(run)]) == 0
    printed = capsys.readouterr()
    assert (
        "changed since the last checkpoint" in printed.err and "steps       5 of 6" in printed.out
    )
    assert "training.steps is 6 and was 5" in printed.err
    assert main(["train", "--resume", str(run)]) == 0
    assert "warning" not in capsys.readouterr().err


DAMAGED = {
    "empty": b"",
    "cut off": b"data:\n  name: 'dig",
    "binary": bytes(range(256)),
    "no mapping": b"- 1\n- 2\n",
    "no sections": b"seed: 0\n",
    "a section of another type": b"seed: 0\ndata: 5\n",
    "an unknown option": b"seed: 0\ndata: {nam: digits}\n",
    "a tag": b"!!python/object/apply:os.mkdir [unpickled]\n",
    "numbers as keys": b"1: 2\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_configuration_is_one_line(kind, run, capsys, monkeypatch):
    monkeypatch.chdir(run)
    (run / "config.yaml").write_bytes(DAMAGED[kind])
    for command in (["train", "--resume"], ["evaluate"]):
        message = fails([*command, str(run)], capsys)
        assert "config.yaml" in message and ("damaged" in message or "unknown" in message)
    assert not (run / "unpickled").exists()


def test_options_of_fit_are_told_from_the_run(tmp_path):
    x, options = torch.randn(80, 3), {"steps": 2, "bar": False, "run": tmp_path}
    fit(VectorFlow(3, 1, 4), x, **options)
    values = yaml.safe_load((tmp_path / "fit.yaml").read_text())
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({**values, "seed": 3}))
    with pytest.raises(RunError, match="was trained with seed=0, not 3"):
        fit(VectorFlow(3, 1, 4), x, resume=True, seed=3, **options)
    (tmp_path / "fit.yaml").write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"fit\.yaml is damaged"):
        fit(VectorFlow(3, 1, 4), x, resume=True, **options)


# Checkpoints.


@pytest.mark.parametrize("part", ["flow", "average", "optimizer"])
def test_a_flipped_bit_of_any_state_is_refused(part, run, capsys):
    path = run / "checkpoints" / "last.pt"
    whole, state = path.read_bytes(), read_file(path)["training"][part]
    tensors = [t for t in _tensors(state) if t.numel() > 8]
    for tensor in tensors[:3]:
        place = whole.index(tensor.numpy().tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "is damaged" in fails(["train", "--resume", str(run)], capsys)
    assert tensors


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)


def test_checkpoints_that_were_removed_or_changed_are_told(run, capsys):
    last, best = (run / "checkpoints" / f"{name}.pt" for name in ("last", "best"))
    content, whole = read_file(last), last.read_bytes()
    best.rename(run / "kept")
    assert "no checkpoint at" in fails(["train", "--resume", str(run)], capsys)
    (run / "kept").rename(best)
    last.unlink()
    assert "no checkpoint at" in fails(["train", "--resume", str(run)], capsys)
    for change in ({"progress": {"step": "x"}}, {"progress": [1]}, {"progress": {"other": 1}}):
        write_file({**content, **change}, last)
        assert "does not say where its training was" in fails(
            ["train", "--resume", str(run)], capsys
        )
    for change in ({"flow": {}}, {"flow": 3}, {"optimizer": {}}, {"average": None}):
        write_file({**content, "training": {**content["training"], **change}}, last)
        assert "is of another model or objective: " in fails(
            ["train", "--resume", str(run)], capsys
        )
    write_file({**content, "training": 3}, last)
    assert "holds a model only" in fails(["train", "--resume", str(run)], capsys)
    last.write_bytes(whole)
    assert main(["train", "--resume", str(run)]) == 0


# Metrics.


def test_the_metrics_of_a_resumed_run_are_those_of_an_uninterrupted_one(trained, tmp_path):
    """Its first part ends between two lines, whose means span both parts."""
    arguments = ["--runs", str(tmp_path), "--training.validate_every", "3"]
    assert main(["train", *TINY, *arguments, "--training.steps", "3"]) == 0
    run = tmp_path / "0000-digits"
    (run / "checkpoints" / ".last.pt.x.tmp").write_text("what a killed process has left")
    assert main(["train", "--resume", str(run), "--training.steps", "5"]) == 0
    assert metrics(run) == metrics(trained)
    names = [sorted(str(p.relative_to(r)) for p in r.rglob("*")) for r in (run, trained)]
    names = [[name for name in some if "tensorboard" not in name] for some in names]
    assert names[0] == names[1]


def test_a_run_that_is_over_writes_nothing_twice(run, trained):
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(trained)


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    run = RunDirectory.create(tmp_path, "x")
    run.append_metrics({"step": 1})
    size = run.metrics_size()
    run.append_metrics({"step": 1, "validation": 2})
    run.append_metrics({"step": 2})
    run.forget_metrics_after(1)
    assert len(metrics(run.path)) == 2
    run.forget_metrics_after(1, size)
    assert metrics(run.path) == [{"step": 1}]
    run.metrics_file.write_bytes(b'{"step": 1}\n\xff\n3\n{"step": "x"}\n{"step"')
    run.forget_metrics_after(5, 10_000)
    assert metrics(run.path) == [{"step": 1}]


@pytest.mark.parametrize("left", ["nothing", "the start"])
def test_a_run_that_was_killed_before_it_validated_begins_anew(left, trained, run):
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    if left == "the start":
        code = """
import os, signal, sys
from iresflow.cli import main
from iresflow.training.loop.trainer import Trainer
Trainer.validate = lambda self: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""
        arguments = ["train", *TINY, "--runs", str(run / "runs")]
        assert run_program(code, *arguments).returncode == -signal.SIGKILL
        run = run / "runs" / "0000-digits"
        assert len(metrics(run)) == 1
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.pt"]
        with pytest.raises(CheckpointError, match="holds no model: its run has not validated yet"):
            iresflow.load(run / "checkpoints" / "last.pt")
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(trained)
    a, b = (read_file(r / "checkpoints" / "last.pt")["training"] for r in (run, trained))
    for part in ("flow", "average"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])


def test_a_fit_that_was_killed_at_its_start_goes_on_from_its_own_weights(tmp_path):
    x, options = torch.randn(80, 3), {"steps": 4, "bar": False, "run": tmp_path / "run"}
    first = VectorFlow(3, 1, 4)
    whole = fit(copy_of(first), x, **{**options, "run": None}).model
    stopped = pytest.MonkeyPatch()
    stopped.setattr("iresflow.training.loop.trainer.Trainer._run", lambda *_: 1 / 0)
    with stopped.context(), pytest.raises(ZeroDivisionError):
        fit(copy_of(first), x, **options)
    stopped.undo()
    other = VectorFlow(3, 1, 4)
    fit(other, x, resume=True, **options)
    for a, b in zip(other.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def copy_of(model):
    other = VectorFlow(3, 1, 4)
    other.load_state_dict(model.state_dict())
    return other


def test_a_full_disk_ends_training_with_one_line(run, capsys, monkeypatch):
    before = (run / "config.yaml").read_bytes()

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    message = fails(["train", "--resume", str(run), "--training.steps", "6"], capsys)
    assert "could not write" in message and "No space left on device" in message
    assert (run / "config.yaml").read_bytes() == before
    assert [p for p in run.rglob("*.tmp")] == []


# Kills.


def test_killed_runs_end_as_those_that_were_not():
    """And the comparison, that of benchmarks/kills.py, would tell lines that are doubled."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import kills
from iresflow.training.runs.directory import RunDirectory
found, violations = kills.run(2, seed=3)  # six kills, at moments of all kinds
assert found["equal"] == 2 and not violations, violations
RunDirectory.forget_metrics_after = lambda *_: None
# Some are killed after a line of metrics, before its checkpoint.
assert any("metrics" in v for seed in (12, 14, 0, 9, 20) for v in kills.run(1, seed)[1])
"""
    done = run_program(code, ROOT / "benchmarks")
    assert done.returncode == 0, done.stderr
