"""Imports go only downward (see CONTRIBUTING.md)."""

import ast
from pathlib import Path

import iresflow

ROOT = Path(iresflow.__file__).parent

# Each part may import parts of a lower rank, and itself; parts of one rank never each other.
RANKS = {
    "errors": 0,
    "extras": 0.3,
    "counters": 0.4,
    "horizon": 0.4,
    "switches": 0.4,
    "ambient": 0.5,
    "streams": 0.5,
    "threads": 0.5,
    "derivatives": 1,
    "tensors": 1,
    "powers": 1.5,
    "solution": 1.5,
    "lanczos": 1.5,
    "linearization": 2,
    "lipschitz": 3,
    "solvers": 3,
    "logdet": 3,
    "data": 3,
    "pictures": 3,
    "plots": 3,
    "relu": 3,
    "bijections": 4,
    "models": 5,
    "analysis": 6,
    "training": 6,
    "inverse_problems": 6.2,
    "spectra": 6.2,
    "ood": 6.2,
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


def files_imported(file: Path) -> set[Path]:
    """The files of this package that a file's imports name, whether run or for type checking.

    A package stands for its ``__init__``, unless a module of it is what is imported.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name for name in inner if located(name)] or [node.module]
        found |= {path for name in names if (path := located(name))}
    return found - {file}


def located(module: str) -> Path | None:
    if module.split(".")[0] != "iresflow":
        return None
    path = ROOT.joinpath(*module.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def circle_among(links: dict[str, set[str]]) -> list[str]:
    """A circle of names that are linked, or an empty list."""
    done, path = set(), []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(links.get(name, ())):
            if circle := visit(other):
                return circle
        path.pop()
        done.add(name)
        return []

    return next((circle for name in sorted(links) if (circle := visit(name))), [])


def test_no_file_imports_itself_through_others():
    links = {
        str(file.relative_to(ROOT)): {str(p.relative_to(ROOT)) for p in files_imported(file)}
        for file in ROOT.rglob("*.py")
    }
    assert sum(map(len, links.values())) > 200
    assert circle_among(links) == []


def test_circles_are_found():
    assert circle_among({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c", "b"]
    assert circle_among({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
