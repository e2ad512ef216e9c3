"""Where the experiments are found, and what is said where they are not."""

from pathlib import Path

from interpreters import BARE, run_module

import iresflow
from iresflow.cli import main

ROOT = Path(iresflow.__file__).parents[1]


def test_an_installed_package_says_where_the_experiments_are(tmp_path):
    (tmp_path / "iresflow").symlink_to(ROOT / "iresflow")
    arguments = ["iresflow", "relu", "preimage", "--quick"]
    options = {"environment": {"PYTHONPATH": tmp_path}, "directory": tmp_path, "imported": BARE}
    done = run_module(*arguments, **options)
    assert done.returncode == 1 and "get the source checkout" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_finds_them_from_anywhere(tmp_path):
    done = run_module("iresflow", "relu", "--help", directory=tmp_path)
    assert done.returncode == 0 and "stability" in done.stdout
    assert main(["relu", "--help"]) == 0
