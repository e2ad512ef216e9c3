"""Parsing of command lines, with errors that name the nearest valid option."""

import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

__all__ = ["add_run_arguments", "fail", "new_parser", "parse"]

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def new_parser(verb: str, description: str) -> ArgumentParser:
    """A parser for one verb."""
    return ArgumentParser(prog=f"iresflow {verb}", description=description, exit_on_error=False)


def add_run_arguments(parser: ArgumentParser) -> None:
    """The arguments of all verbs that take a run."""
    parser.add_argument(
        "run", help="run directory, such as runs/0000-digits, or a checkpoint file"
    )
    parser.add_argument(
        "--checkpoint", default="best", choices=["best", "last"], help="which one of the run"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random streams")


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parses, or ends the process with one line that says what is wrong and what is nearest."""
    try:
        return parser.parse_args(list(arguments))
    except Exception as error:  # the library raises several kinds for bad input
        fail(_explain(str(error).strip(), _keys(parser)), code=2)


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the process with a message and an exit code."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def _keys(parser: ArgumentParser) -> list[str]:
    options = [name for action in parser._actions for name in action.option_strings]
    return sorted({name.lstrip("-") for name in options if name.startswith("--")})


def _explain(message: str, keys: list[str]) -> str:
    message = re.sub(r"\s+", " ", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    unknown = re.search(r"[Uu]nrecognized arguments?: --([\w.\-]+)", message)
    in_group = re.search(r"Group '([\w.]+)' does not accept option '([\w.\-]+)'", message)
    at_root = re.search(
        r"(?:Key|Option|option) '([\w.\-]+)' is not (?:expected|accepted)", message
    )
    wrong: str | None = None
    if unknown:
        wrong = unknown[1]
    elif in_group:
        wrong = f"{in_group[1]}.{in_group[2]}"
    elif at_root:
        wrong = at_root[1]
    if wrong is None:
        return message
    near = difflib.get_close_matches(wrong, keys, n=1, cutoff=0.4)
    if not near:
        # The right name in the wrong section: compare the last part alone.
        last = {key.rsplit(".", 1)[-1]: key for key in keys}
        near = [last[n] for n in difflib.get_close_matches(wrong.rsplit(".", 1)[-1], last, n=1)]
    advice = f"the nearest is --{near[0]}" if near else "see --help"
    return f"unknown option {wrong!r}: {advice}"
