"""Parsing of command lines, with errors that name the nearest valid option."""

import difflib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from iresflow.models import pretrained

__all__ = ["add_run_arguments", "fail", "nearest", "new_parser", "parse"]

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def new_parser(verb: str, description: str) -> ArgumentParser:
    """A parser for one verb."""
    return ArgumentParser(prog=f"iresflow {verb}", description=description, exit_on_error=False)


def add_run_arguments(parser: ArgumentParser) -> None:
    """The arguments of all verbs that take a run."""
    parser.add_argument(
        "run",
        type=str,
        help="run directory, such as runs/0000-digits, or a checkpoint file, or a model that "
        f"travels with the package: {', '.join(pretrained.names())}",
    )
    parser.add_argument(
        "--checkpoint", default="best", choices=["best", "last"], help="which one of the run"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random streams")


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parses, or ends the process with one line that says what is wrong and what is nearest.

    A run that is the name of a packaged model becomes that model's file.
    """
    if unknown := _unknown_option(parser, arguments):
        fail(unknown, code=2)
    try:
        options = parser.parse_args(list(arguments))
    except Exception as error:  # the library raises several kinds for bad input
        fail(" ".join(str(error).split()), code=2)
    if "run" in options:  # no type of the option: its help would show the function's address
        options.run = pretrained.located(options.run)
    return options


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the process with a message and an exit code."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """What to say of an unknown option: the known one that was meant, as far as can be told."""
    known = list(known)
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.4)
    if not near:
        # The right name in the wrong section: compare the last part alone.
        last = {name.rsplit(".", 1)[-1]: name for name in known}
        near = [last[n] for n in difflib.get_close_matches(wrong.rsplit(".", 1)[-1], last, n=1)]
    return f"the nearest is --{near[0]}" if near else "see --help"


def _unknown_option(parser: ArgumentParser, arguments: Sequence[str]) -> str | None:
    """What is to be said of the first option that the parser doesn't have; None where it has all.

    The parser refuses most of them too, but each kind in other words, without the nearest one; and
    what begins with an option and a dot it takes for that option (``--data.root`` for ``--data``).
    """
    actions = [name for action in parser._actions for name in action.option_strings]
    known = sorted({name.lstrip("-") for name in actions if name.startswith("--")})
    for name in _names(arguments):
        if name not in known:
            return f"unknown option {name!r}: {nearest(name, known)}"
    return None


def _names(arguments: Sequence[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "--":
            return
        if argument.startswith("--"):
            yield argument[2:].partition("=")[0].rstrip("+")
