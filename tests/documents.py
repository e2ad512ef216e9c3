"""What the documentation shows: its blocks of code, and the commands in its text."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import iresflow

ROOT = Path(iresflow.__file__).parents[1]

BLOCK = re.compile(
    r"(?P<mark>^<!-- not run: .+ -->\n)?^```(?P<kind>python|sh)\n(?P<text>.*?)^```$", re.M | re.S
)
"""A fenced block, with the remark above it that excepts it from being run."""

INLINE = re.compile(
    r"`((?:python (?:-m |train|sample|benchmarks/|experiments/)|iresflow |torchrun )[^`]*)`"
)
"""A command in the text or in a table."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: ``python`` or ``sh``.
        text: What stands in it.
        run: Whether it says nothing against being run.
        place: File and line.
    """

    kind: str
    text: str
    run: bool
    place: str


def pages() -> list[Path]:
    """All that is written for readers."""
    others = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    return others + sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)


def guides() -> list[Path]:
    """The pages whose blocks are run."""
    folder = ROOT / "docs" / "guides"
    first = [ROOT / "docs" / name for name in ("index.md", "start.md")]
    return [*first, *sorted(folder.glob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of Python and shell of a page, in their order."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        line = text[: found.start("text")].count("\n") + 1
        name = page.relative_to(ROOT)
        yield Block(found["kind"], found["text"], found["mark"] is None, f"{name}:{line}")


def commands(shell: str) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in shell.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield words
                words = []


def commands_in_text(page: Path) -> Iterator[list[str]]:
    """The commands that stand in the text of a page.

    Without mentions of a verb alone, and patterns: a choice, a NAME to fill in, or dots.
    """
    for found in INLINE.findall(BLOCK.sub("", page.read_text())):
        words = shlex.split(found)
        alone = len(verb_of(words) or words) == 1
        if not alone and not re.search(r"\.\.\.|\||NAME", found):
            yield words


def verb_of(words: list[str]) -> list[str] | None:
    """What a command asks of ``iresflow``, by whatever launcher; None if it starts no verb."""
    for name, verb in (("train.py", ["train"]), ("sample.py", ["sample"]), ("iresflow", [])):
        if name in words:
            rest = words[words.index(name) + 1 :]
            return [*verb, *rest] if verb or rest else None
    return None


def script_of(words: list[str]) -> tuple[Path, list[str]] | None:
    """The benchmark or experiment that a command starts, if it does, and its arguments.

    Returns:
        The script, or the folder of a package of experiments.
    """
    for index, word in enumerate(words):
        if found := re.fullmatch(r"(benchmarks|experiments)[/.](\w+?)(\.py)?", word):
            path = ROOT / found[1] / found[2]
            return path if path.is_dir() else path.with_suffix(".py"), words[index + 1 :]
    return None
