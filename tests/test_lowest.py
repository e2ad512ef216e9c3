"""The pins of the lowest versions, as the tests are run with them."""

import runpy
import tomllib
from pathlib import Path

import pytest

import iresflow

ROOT = Path(iresflow.__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))
pins = SCRIPT["pins"]


def test_each_lower_bound_becomes_a_pin(capsys):
    SCRIPT["main"]()
    printed = capsys.readouterr().out.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert requirement.replace(">=", "==") in printed
    for extra in ("relu", "distributed", "spectra"):
        (requirement,) = project["optional-dependencies"][extra]
        assert requirement.replace(">=", "==") in printed
    # What only reads the code stays as new as it is, and extras are no packages.
    assert not any(line.startswith(("mypy", "ruff", "iresflow", "sphinx")) for line in printed)
    assert printed == sorted(set(printed))


def test_requirements_without_one_lowest_version_are_refused():
    def of(*lines):
        return {"name": "a", "dependencies": list(lines), "optional-dependencies": {"x": ["b>=2"]}}

    assert list(pins(of("c>=1.0", "d[e]>=3", "f", "a[x]"), ("x",))) == [
        "c==1.0", "d[e]==3", "f", "b==2",
    ]  # fmt: skip
    for line in ("c>=1,<2", "c<2", "c~=1.4", "c>=1; python_version < '3.12'"):
        with pytest.raises(ValueError, match="is not 'name', 'name\\[extra\\]' or 'name>=bound'"):
            list(pins(of(line), ()))
