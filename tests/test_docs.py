"""What the guides show runs, and every command that the documentation names can be parsed."""

import argparse
import runpy
import sys
from functools import partial
from importlib import import_module

import jsonargparse
import pytest
from documents import (
    ROOT,
    blocks,
    commands,
    commands_in_text,
    guides,
    pages,
    script_of,
    verb_of,
)

import iresflow
from experiments.runner import options_of
from iresflow import data
from iresflow.cli import main
from iresflow.commands.reading.configuration import configure
from iresflow.training import probing

pytestmark = pytest.mark.usefixtures("float32")

SMALL = """--model.blocks [1] --model.hidden 4 --model.dequantization_blocks 1
--training.batch_size 8 --training.validate_every 2
--training.validation_samples 8 --training.log_every 1
--data.test 16""".split()

OTHERS = {
    ".": "the shell",
    "accelerate": "without train.py",
    "bash": ".ci/run",
    "mypy": "",
    "pip": "",
    "python -m pytest": "",
    "python3 -m venv": "",
    "ruff": "",
    "sphinx-build": "",
    "tensorboard": "",
}
"""Programs that are not ours, by how their commands begin."""


@pytest.fixture
def short_training(monkeypatch):
    """Training takes three steps, whatever a guide says, and few images are held out."""
    fit, load = iresflow.fit, data.load_images
    once = {"bar": False, "validate_every": 3, "validation_samples": 16}

    def brief(*arguments, minutes=None, steps=None, **options):
        return fit(*arguments, steps=3, **(once | options))

    monkeypatch.setattr(iresflow, "fit", brief)
    monkeypatch.setattr(data, "load_images", partial(load, validation=40, test=40))
    monkeypatch.setattr(probing, "STEPS", 20)


def run_command(words):
    """Whether a verb of ours works, on models of a few steps; the programs of others are known."""
    verb = verb_of(words)
    if verb is None:
        return is_known(words)
    if verb[0] == "train":
        verb += [*SMALL, "--training.steps", "4" if "--resume" in verb else "2"]
    return main(verb) == 0


def is_known(words):
    return any(" ".join(words).startswith(begin) for begin in OTHERS)


@pytest.mark.usefixtures("short_training", "native_passes")
@pytest.mark.parametrize("page", guides(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_guide_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    for block in blocks(page):
        if not block.run:
            continue
        if block.kind == "python":
            exec(compile(block.text, block.place, "exec"), names)
        else:
            for words in commands(block.text):
                assert run_command(words), words


class Parsed(BaseException):
    """Ends a program as soon as its arguments are parsed; no handler of errors holds it up."""


@pytest.fixture
def only_parsed(monkeypatch):
    monkeypatch.chdir(ROOT)
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):

        def parse(self, *arguments, original=parser.parse_args, **options):
            original(self, *arguments, **options)
            raise Parsed

        monkeypatch.setattr(parser, "parse_args", parse)


def parse_verb(verb, *arguments):
    """Reads the options of a verb of ours, by what reads them when it runs."""
    if verb == "train":
        # A run to go on with is read when it is there.
        at = arguments.index("--resume") if "--resume" in arguments else len(arguments)
        configure([*arguments[:at], *arguments[at + 2 :]])
    elif verb == "relu" and arguments[0] != "analyse":
        name, *rest = arguments
        options_of(import_module(f"experiments.relu.{name}"), rest)
    else:
        with pytest.raises(Parsed):
            main([verb, *arguments])


def parse_command(words, monkeypatch):
    """Whether the command is one of ours, whose options are accepted."""
    if (verb := verb_of(words)) is not None:
        parse_verb(*verb)
        return True
    if (script := script_of(words)) is not None:
        file, arguments = script
        if file.is_dir():
            options_of(import_module(f"experiments.{file.name}.{arguments[0]}"), arguments[1:])
            return True
        monkeypatch.setattr(sys, "argv", [str(file), *arguments])
        monkeypatch.syspath_prepend(file.parent)
        with pytest.raises(Parsed):
            runpy.run_path(str(file), run_name="__main__")
        return True
    return False


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_the_parsers_accept(page, monkeypatch):
    shell = [words for b in blocks(page) if b.kind == "sh" for words in commands(b.text)]
    for words in [*shell, *commands_in_text(page)]:
        assert parse_command(words, monkeypatch) or is_known(words), words


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize(
    "wrong",
    [
        "python train.py --training.stepps 5",
        "iresflow sample",
        "torchrun --nproc_per_node=2 train.py --config nothing",
        "python benchmarks/truncation.py --no-such-option",
        "python -m experiments.classifiers spheres --dimm 4",
    ],
)
def test_a_wrong_command_is_found(wrong, monkeypatch):
    with pytest.raises(SystemExit):
        parse_command(wrong.split(), monkeypatch)


def test_pages_are_found():
    names = {str(page.relative_to(ROOT)) for page in pages()}
    assert {"README.md", "docs/guides/tables.md", "docs/numbers/speed.md"} <= names
    found = [words for page in pages() for words in commands_in_text(page)]
    assert sum(script_of(words) is not None for words in found) > 10
