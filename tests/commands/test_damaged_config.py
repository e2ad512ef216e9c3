"""A run whose config.yaml is damaged: one clear line, or it goes on as it was."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import iresflow

FOLDER = Path(iresflow.__file__).parents[1] / "benchmarks"
EVERY = 23
"""The share of attempts that are made: the benchmark makes all."""


@pytest.fixture
def sweep(monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("odd_options")


@pytest.mark.filterwarnings("default")
def test_damages_end_in_one_line(sweep, tmp_path):
    ended = {}
    for index, (label, attempt) in enumerate(sweep.damaged_configs(tmp_path)):
        if index % EVERY == 0:
            ended[label] = attempt()
    assert len(ended) > 20
    assert {label: how for label, how in ended.items() if how not in ("works", "refused")} == {}
    assert {"works", "refused"} == set(ended.values())


def test_a_judge_that_sees_all_ends(sweep, monkeypatch):
    def ends(with_what):
        def command(arguments):
            return with_what()

        monkeypatch.setattr(sweep, "command", command)
        return sweep.outcome([])

    def prints(*lines, code=1):
        print(*lines, sep="\n", file=sys.stderr)
        raise SystemExit(code)

    assert ends(lambda: 0) == "works"
    assert ends(lambda: prints("warning: odd", "error: wrong")) == "refused"
    assert ends(lambda: 1 // 0).startswith("ZeroDivisionError escapes")
    assert ends(lambda: prints("error: unexpected KeyError")) == "error: unexpected KeyError"
    assert "ends with 1" in ends(lambda: prints("Traceback", "error: wrong"))
    assert "ends with 3" in ends(lambda: prints("error: wrong", code=3))
    assert "ends with 1" in ends(lambda: 1)
