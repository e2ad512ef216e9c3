"""Libraries of extras: what does without them works, and what needs one says how to install it."""

from subprocess import CompletedProcess

import pytest
from interpreters import BARE, run_program

from iresflow.errors import MissingLibraryError
from iresflow.extras import import_extra

WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # as if it were not installed
"""


def run(hidden: str, program: str, *arguments: str, **variables: str) -> CompletedProcess[str]:
    """A program in a process of its own, where some libraries can't be imported."""
    program = WITHOUT + program
    return run_program(program, hidden, *arguments, environment=variables, imported=BARE)


def test_a_module_is_imported_by_its_full_name():
    assert import_extra("json.decoder", "any").__name__ == "json.decoder"


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(MissingLibraryError, match=r"needs no_such_thing, .*'iresflow\[relu\]'"):
        import_extra("no_such_thing.part", "relu")


def test_a_library_that_is_broken_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "a_broken_library.py").write_text("import its_own_missing_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_own_missing_part") as caught:
        import_extra("a_broken_library", "relu")
    assert not isinstance(caught.value, MissingLibraryError)


RELU = """
import numpy as np, torch
from iresflow import relu
from iresflow.relu.programs import Program, solve
print(bool(relu.frame_bounds(relu.dense_layer(torch.eye(3)), torch.ones(1, 3)).lower > 0.99))
one = np.ones(1)
solve(Program(one, np.eye(1), one, one))
"""


def test_what_of_the_relu_room_needs_no_solver_works_without_it():
    ended = run("highspy", RELU)
    assert ended.stdout == "True\n" and ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith(
        "this needs highspy, which is not installed: pip install 'iresflow[relu]'"
    )


VERB = """
from iresflow.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_several_processes_need_accelerate():
    ended = run("accelerate", VERB, "evaluate", "no-run", WORLD_SIZE="2", RANK="0")
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: this needs accelerate, which is not installed: "
        "pip install 'iresflow[distributed]'\n",
    )


def test_one_process_trains_without_any_extra(tmp_path):
    """What the README's first command installs is enough for it."""
    small = "--model.blocks [0,1] --model.hidden 4 --training.steps 1 --training.compile false"
    arguments = ["train", *small.split(), "--runs", str(tmp_path)]
    ended = run("accelerate,highspy,pyimzml", VERB, *arguments)
    assert ended.returncode == 0, ended.stderr
