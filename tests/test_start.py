"""What the command line imports before it says anything."""

import json

import pytest
from interpreters import BARE, run_program

HEAVY = {
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "sympy",
    "tensorboard",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
}
"""Each takes a tenth of a second and more."""

PROGRAM = """
import contextlib, io, json, sys
from iresflow.cli import main
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(json.dumps([len(out.getvalue()), sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def of_torch() -> set[str]:
    """What torch itself imports, which no verb can do without."""
    program = "import json, sys, torch; print(json.dumps(sorted(sys.modules)))"
    return set(json.loads(run(program)))


def run(program: str, *arguments: str) -> str:
    done = run_program(program, *arguments, imported=BARE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "train --help", "sample --help", "evaluate --help", "certify --help",
     "relu --help"],
)  # fmt: skip
def test_help_imports_nothing_that_it_does_not_use(arguments, of_torch):
    length, modules = json.loads(run(PROGRAM, *arguments.split()))
    assert length > 10
    assert not HEAVY & (set(modules) - of_torch)
    # Of this package and the parsers alone; half of what torchvision brings would be thousands.
    assert len(set(modules) - of_torch) < 700


def test_an_experiment_imports_no_data_sets(of_torch):
    """Its options are those of its own module, whose methods need scipy and figures."""
    _, modules = json.loads(run(PROGRAM, "relu", "frames", "--help"))
    new = set(modules) - of_torch
    assert not new & (HEAVY - {"matplotlib", "scipy"})
