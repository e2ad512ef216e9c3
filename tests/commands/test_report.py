"""Tables and figures in a directory: what other programs read."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from iresflow.commands.report import Report


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_results_are_strict_json(tmp_path):
    """NaN and infinity are null there, and themselves in the other files."""
    report = Report(tmp_path, "numbers")
    rows = [{"a": float("nan"), "b": 1}, {"a": np.float64(2.5), "b": np.int64(3)}]
    report.table("table", rows)
    report.numbers("numbers", {"c": -math.inf, "d": None, "e": [torch.tensor(0.5), np.nan]})
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "table": [{"a": None, "b": 1}, {"a": 2.5, "b": 3}],
        "numbers": {"c": None, "d": None, "e": [0.5, None]},
    }
    with (tmp_path / "table.csv").open() as file:
        assert [row["a"] for row in csv.DictReader(file)] == ["nan", "2.5"]
    assert "- c: -inf" in (tmp_path / "results.md").read_text()


def test_a_table_that_is_written_again_takes_the_place_of_the_first(tmp_path):
    report = Report(tmp_path, "numbers")
    for last in range(3):
        report.table("table", [{"found": f"row {n}"} for n in range(last + 1)])
        report.numbers("end", {"done": last})
    page = (tmp_path / "results.md").read_text()
    assert page.count("## table") == page.count("row 0") == page.count("## end") == 1
    assert "row 2" in page and "done: 2" in page and page.index("## table") < page.index("## end")


def test_refuses_uneven_tables(tmp_path):
    for rows in ([], [{"a": 1}, {"b": 1}]):
        with pytest.raises(ValueError, match="at least one row"):
            Report(tmp_path, "numbers").table("table", rows)
