"""Imports go only downward (see CONTRIBUTING.md)."""

import ast
from pathlib import Path

import iresflow

ROOT = Path(iresflow.__file__).parent

# Each part may import parts of a lower rank, and itself; parts of one rank never each other.
RANKS = {
    "errors": 0,
    "counters": 0.4,
    "ambient": 0.5,
    "streams": 0.5,
    "threads": 0.5,
    "tensors": 1,
    "linearization": 2,
    "lipschitz": 3,
    "solvers": 3,
    "logdet": 3,
    "data": 3,
    "plots": 3,
    "relu": 3,
    "bijections": 4,
    "models": 5,
    "analysis": 6,
    "training": 6,
    "__init__": 6.5,
    "commands": 7,
    "cli": 8,
    "__main__": 9,
}


def imported_modules(file: Path) -> set[str]:
    """The modules of this package that a file imports, for type checking or for use."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found.add(node.module)
    return {name for name in found if name and name.split(".")[0] == "iresflow"}


def part_of(module: str) -> str:
    return (module.split(".") + ["__init__"])[1]


def test_imports_go_only_downward():
    wrong = []
    for file in ROOT.rglob("*.py"):
        own = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imported_modules(file):
            other = part_of(module)
            if other != own and not RANKS[other] < RANKS[own]:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_every_part_has_a_rank():
    parts = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts == set(RANKS)


def test_the_package_knows_no_experiment():
    wrong = [
        file.relative_to(ROOT)
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.split(".")[0] == "experiments"
    ]
    assert not wrong
