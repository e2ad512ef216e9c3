"""What is installed: wheel and sdist hold all that the package needs, and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from interpreters import BARE, run_program

import iresflow

ROOT = Path(iresflow.__file__).parents[1]
PACKAGE = ROOT / "iresflow"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with sdist and wheel, made without a network from what is under version control.

    The wheel is made from the sdist, as `python -m build` does.
    """
    pytest.importorskip("build", reason="the package build is not installed")
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "iresflow"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("iresflow", "configs"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def contents(suffixes: set[str]) -> set[str]:
    """The package's files of some kinds, by their paths in a wheel."""
    return {
        str((Path(folder) / name).relative_to(ROOT))
        for folder, _, names in os.walk(PACKAGE, followlinks=True)
        for name in names
        if Path(name).suffix in suffixes and not folder.endswith("__pycache__")
    }


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (file,) = built.glob("*.whl")
    return file


def test_the_wheel_holds_code_sources_configurations_and_typing(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.testzip() is None
    needed = contents({".py", ".cpp", ".h", ".hpp", ".yaml", ".typed", ".pt"})
    own = {"iresflow/py.typed", "iresflow/configs/digits.yaml", "iresflow/weights/digits.pt"}
    assert own <= needed
    assert any(name.endswith(".cpp") or "/cpp/" in name for name in needed)
    assert needed <= names
    about = {name for name in names if ".dist-info/" in name}
    assert any(name.endswith("LICENSE") for name in about)
    # No test, benchmark or experiment is installed beside the package.
    assert {name.split("/")[0] for name in names - about} == {"iresflow"}


def test_the_sdist_builds_the_wheel_and_holds_the_same(built, wheel):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        own = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert own <= names
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_metadata_name_version_extras_and_bounds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        data = Parser().parsestr(archive.read(name).decode())
        (entries,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "iresflow = iresflow.cli:main" in archive.read(entries).decode()
    assert data["Version"] == iresflow.__version__ and data["License-Expression"] == "MIT"
    assert {"all", "distributed", "docs", "relu", "spectra", "test"} <= set(
        data.get_all("Provides-Extra")
    )
    needs = data.get_all("Requires-Dist")
    plain = [need for need in needs if "extra ==" not in need]
    # What an extra serves is not needed without it.
    assert not any(need.startswith(("highspy", "accelerate", "pyimzml")) for need in plain)
    assert all(">=" in need for need in plain)


def test_an_installed_wheel_trains_and_samples_in_another_directory(wheel, tmp_path):
    """Beside the libraries of this process, and without the checkout."""
    packages, elsewhere = tmp_path / "packages", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)  # a wheel of Python alone is installed by that
    elsewhere.mkdir()
    program = f"""
import sys
sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]
import iresflow
from iresflow.cli import main
print(iresflow.__file__)
assert not any(main(command.split()) for command in sys.argv[1:])
"""
    small = "--model.blocks [0,1] --model.hidden 4 --training.steps 2 --training.compile false"
    commands = (
        f"train --config digits {small}",
        "sample runs/0000-digits --n 4 --out x.npz",
        "sample digits --n 4 --out digits.npz",
    )
    ended = run_program(
        program,
        *commands,
        environment={"PYTHONPATH": packages},
        directory=elsewhere,
        imported=BARE,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(str(packages))
    assert (elsewhere / "x.npz").is_file() and (elsewhere / "digits.npz").is_file()
    # The compiled passes find their C++ sources.
    assert (packages / "iresflow" / "lipschitz" / "passes" / "native" / "cpp").is_dir()
