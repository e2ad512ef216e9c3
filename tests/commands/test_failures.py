"""What is said of errors that end a command."""

import numpy as np
import pytest
import torch

import iresflow.commands.train as train
from iresflow import DataError
from iresflow.cli import EXPECTED, main
from iresflow.commands.failures import explained


def ends(monkeypatch, capsys, error, *switches):
    """What a training prints, of which a part raises an error."""

    def raises(*_):
        raise error

    monkeypatch.setattr(train, "build_dataset", raises)
    with pytest.raises(SystemExit) as ended:
        main(["train", *switches])
    assert ended.value.code == 1
    return capsys.readouterr().err.splitlines()


def test_an_unexpected_error_is_one_line_and_traced_on_demand(monkeypatch, capsys):
    (line,) = ends(monkeypatch, capsys, KeyError("cause"))
    assert line.startswith("error: unexpected KeyError: 'cause' is missing. This is a fault of")
    assert "--trace" in line
    for switches in (["--trace"], ["--seed", "3", "--trace"]):
        *trace, last = ends(monkeypatch, capsys, KeyError("cause"), *switches)
        assert last == line and trace[0].startswith("Traceback")
        assert any("in raises" in text for text in trace)


def test_an_expected_error_speaks_for_itself(monkeypatch, capsys):
    error = DataError("no data\nhere")
    error.add_note("(process 1 of 2)")
    assert ends(monkeypatch, capsys, error) == ["error: no data here (process 1 of 2)"]


def allocation(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        allocate()
    return raised.value


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(2**60),
        lambda: torch.empty(2**62, 2**62),
        lambda: np.empty(2**56),
        lambda: bytearray(2**62),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")),
    ],
    ids=["torch", "torch-sizes", "numpy", "python", "device"],
)
def test_out_of_memory_says_what_to_change(allocate, monkeypatch, capsys):
    error = allocation(allocate)
    (line,) = ends(monkeypatch, capsys, error)
    assert line.startswith("error: out of memory (") and "unexpected" not in line
    assert "training.batch_size" in line and "training.accumulate" in line
    assert "--batch-size" in explained(error, "evaluate", EXPECTED)
    assert "--n" in explained(error, "sample", EXPECTED)


def test_other_runtime_errors_are_not_taken_for_it():
    words = explained(RuntimeError("shapes differ"), "train", EXPECTED)
    assert words.startswith("unexpected RuntimeError: shapes differ.")


def test_trace_alone_prints_the_usage(capsys):
    assert main(["--trace"]) == 2
    assert "--trace shows where an error comes from" in capsys.readouterr().out
