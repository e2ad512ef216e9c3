"""Where the experiments are found, and what is said where they are not."""

import subprocess
import sys
from pathlib import Path

import iresflow
from iresflow.cli import main

ROOT = Path(iresflow.__file__).parents[1]


def test_an_installed_package_says_where_the_experiments_are(tmp_path):
    (tmp_path / "iresflow").symlink_to(ROOT / "iresflow")
    done = subprocess.run(
        [sys.executable, "-m", "iresflow", "relu", "preimage", "--quick"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "get the source checkout" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_finds_them_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "iresflow", "relu", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "stability" in done.stdout
    assert main(["relu", "--help"]) == 0
