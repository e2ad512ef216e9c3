"""Print the lowest version of each requirement of pyproject.toml, as pip's requirements.

    python .ci/lowest.py > lowest.txt
    pip install -r lowest.txt && pip install --no-deps -e .

puts the package into an environment where the tests show whether its lower bounds hold together.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Tools that read the code; no test depends on how old they are.
READERS = {"mypy", "ruff"}


def pins(project: dict, extras: tuple[str, ...]) -> Iterator[str]:
    """`name==bound` for each `name>=bound` of the package and of the extras named.

    Requirements without a bound stay as they are, and the package's own extras are left out.

    Raises:
        ValueError: for a requirement of any other form, which has no single lowest version.
    """
    groups = [project["dependencies"], *(project["optional-dependencies"][e] for e in extras)]
    for requirement in (line for group in groups for line in group):
        form = re.fullmatch(r"([\w.-]+)(\[[\w,-]+\])?(?:>=([\w.]+))?", requirement)
        if form is None:
            raise ValueError(f"{requirement!r} is not 'name', 'name[extra]' or 'name>=bound'")
        name, extra, bound = form.groups()
        if name != project["name"] and name not in READERS:
            yield f"{name}{extra or ''}" + (f"=={bound}" if bound else "")


def main() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = tuple(project["optional-dependencies"].keys() - {"docs"})
    sys.stdout.writelines(f"{pin}\n" for pin in sorted(set(pins(project, extras))))


if __name__ == "__main__":
    main()
