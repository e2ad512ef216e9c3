"""One experiment as one command: its options, its data, a directory, a log, and a report."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from types import ModuleType
from typing import Any, TextIO, TypeVar, final

import torch
import yaml
from jsonargparse import ArgumentParser
from threadpoolctl import threadpool_limits

from iresflow.cli import EXPECTED
from iresflow.commands.memory import keep_freed_memory
from iresflow.commands.reading.arguments import fail, new_parser
from iresflow.commands.reading.options import read_options
from iresflow.commands.report import Report
from iresflow.data import Dataset
from iresflow.errors import DataError
from iresflow.lipschitz import compile_kernels
from iresflow.training.build import build_dataset
from iresflow.training.config import DataConfig
from iresflow.training.runs.directory import new_directory
from iresflow.training.sections import Section, option_kinds, section_of
from iresflow.training.values import converted

__all__ = ["Room", "capped", "options_of", "run_experiment", "run_room"]

S = TypeVar("S", bound=Section)


@final
@dataclass(frozen=True)
class Room:
    """Some experiments.

    Each is a module that has

    - ``Settings``, a keyword-only dataclass of what a person can set, ``seed`` among it,
    - ``DATA``, for each section of the configuration that names a data set, its default fields,
    - ``quick(settings)``, the settings cut down to a run of about a minute,
    - ``run(settings, data, report)``, where ``data`` has an entry for each name of ``DATA``.

    Attributes:
        package: Where the modules are.
        command: What a person types before an experiment's name.
        experiments: One line for each.
        augments: Whether its models train on changed images.
        note: What is said below them.
    """

    package: str
    command: str
    experiments: Mapping[str, str]
    augments: bool = False
    note: str = ""


def capped(settings: S, **most: int) -> S:
    """Settings whose numbers, each of several too, are at most so much; null stands for all."""

    def cut(value: Any, limit: int) -> Any:  # noqa: ANN401 (of any field)
        if isinstance(value, tuple):
            return tuple(min(number, limit) for number in value)
        return limit if value is None else min(value, limit)

    changes = {name: cut(getattr(settings, name), limit) for name, limit in most.items()}
    return replace(settings, **changes)


def run_experiment(
    room: Room, arguments: Sequence[str], prepare: Callable[[Dataset], object]
) -> int:
    """Runs an experiment; returns the exit code.

    Arguments:
        room: That has it.
        arguments: The words after the room's command.
        prepare: Makes what the experiment gets of a data set.
    """
    if not arguments or arguments[0] in {"-h", "--help"}:
        names = "\n".join(f"  {name:<10} {what}" for name, what in room.experiments.items())
        print(
            f"usage: {room.command} EXPERIMENT ...\n\n{names}\n\n"
            f"{room.command} EXPERIMENT --help explains each option."
            + (f"\n{room.note}" if room.note else "")
        )
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in room.experiments:
        known = ", ".join(room.experiments)
        fail(f"unknown experiment {name!r}; choose one of {known}", code=2)
    experiment = import_module(f"{room.package}.{name}")
    if "--help" in rest or "-h" in rest:
        _parser(room, name, experiment).parse_args(["--help"])
    settings, configs, others = options_of(experiment, rest)
    mirrored = [section for section, config in configs.items() if config.flip or config.shift]
    if mirrored and not room.augments:
        fail(f"{mirrored[0]}.flip and .shift: only flows train on changed images", code=2)
    keep_freed_memory()
    compile_kernels()
    torch.manual_seed(settings.seed)
    data = {
        section: prepare(_load(section, config, settings.seed))
        for section, config in configs.items()
    }
    short = room.package.rpartition(".")[2]
    path = _directory(others, f"{short}-{name}")
    used = {**asdict(settings), **{section: asdict(c) for section, c in configs.items()}}
    (path / "config.yaml").write_text(yaml.safe_dump(used, sort_keys=False))
    with _logged(path / "log.txt"):
        print(f"run         {path}", flush=True)
        began, computed = perf_counter(), process_time()
        # The programs' matrices are small: a second thread of scipy's BLAS would only wait.
        with threadpool_limits(1, user_api="blas"):
            experiment.run(settings, data, Report(path, f"{room.command} {name}"))
        minutes, of_cpu = (perf_counter() - began) / 60, (process_time() - computed) / 60
        print(f"took        {minutes:.1f} minutes, {of_cpu:.1f} of processor time")
        print(f"results     {path / 'results.md'}, results.json, and the figures beside them")
    return 0


def run_room(room: Room, arguments: Sequence[str]) -> int:
    """Runs an experiment on data as they are; returns the exit code, and says errors in a line."""
    try:
        return run_experiment(room, arguments, lambda dataset: dataset)
    except KeyboardInterrupt:
        fail("interrupted; --into the same directory goes on", code=130)
    except (*EXPECTED, ModuleNotFoundError) as error:  # the latter of a library for comparisons
        fail(str(error))


def _load(section: str, config: DataConfig, seed: int) -> Dataset:
    try:
        return build_dataset(config, seed)
    except DataError as error:
        # Advice names the options of a flow's data, which are called otherwise here.
        raise DataError(str(error).replace("--data.", f"--{section}.")) from None


def _directory(others: Mapping[str, Any], name: str) -> Path:
    """A new directory, or the one to go on in."""
    if (into := others.get("into")) is None:
        return new_directory(others.get("runs", "runs"), others.get("name") or name)
    path = Path(into)
    path.mkdir(parents=True, exist_ok=True)
    return path


@final
class _Tee:
    """Writes to two files."""

    def __init__(self, *files: TextIO) -> None:
        self._files = files

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
            file.flush()
        return len(text)

    def flush(self) -> None:
        for file in self._files:
            file.flush()


@contextmanager
def _logged(file: Path) -> Iterator[None]:
    """What is printed goes to a file too."""
    with file.open("a") as log, redirect_stdout(_Tee(sys.stdout, log)):  # type: ignore[type-var]
        yield


def options_of(
    experiment: ModuleType, arguments: Sequence[str]
) -> tuple[Any, dict[str, DataConfig], dict[str, Any]]:
    """The experiment's settings, its data sets by their names, and the other options.

    Options that are wrong end the process.
    """
    sections: dict[str, dict[str, Any]] = experiment.DATA
    own = option_kinds(experiment.Settings)
    kinds = {"quick": bool, "runs": str, "name": str | None, "into": str | None, **own}
    for section in sections:
        kinds |= {section: DataConfig, **option_kinds(DataConfig, f"{section}.")}
    try:
        options = read_options(arguments, kinds, Path)
        values = options.values
        given = {field: values.pop(field) for field in own if field in values}
        settings = section_of(experiment.Settings, given)
        if values.get("quick"):
            settings = _but_for(experiment.quick(settings), settings, options.typed)
        configs = {
            section: section_of(DataConfig, {**fields, **values.pop(section, {})}, f"{section}.")
            for section, fields in sections.items()
        }
        others = {field: converted(value, kinds[field], field) for field, value in values.items()}
    except ValueError as error:
        fail(str(error), code=2)
    return settings, configs, others


def _but_for(small: S, asked: S, typed: Mapping[str, Any]) -> S:
    """Settings that were cut down, but for those that the command line names."""
    fields = {name: value for name, value in typed.items() if hasattr(asked, name)}
    for name, value in fields.items():
        cut, own = getattr(small, name), getattr(asked, name)
        nested = isinstance(own, Section) and isinstance(value, Mapping)
        fields[name] = _but_for(cut, own, value) if nested else own
    return replace(small, **fields)


def _parser(room: Room, name: str, experiment: ModuleType) -> ArgumentParser:
    short = room.package.rpartition(".")[2]
    parser = new_parser(f"{short} {name}", experiment.__doc__ or "")
    parser.add_argument("--config", help=f"a YAML file, such as experiments/{short}/{name}.yaml")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, about a minute, but for options that are given",
    )
    parser.add_argument("--runs", default="runs", help="directory that holds the runs")
    parser.add_argument("--name", help="name of the run, part of its directory")
    parser.add_argument("--into", help="directory of a run to go on with: what it trained stays")
    parser.add_class_arguments(experiment.Settings)
    for section, fields in experiment.DATA.items():
        parser.add_class_arguments(DataConfig, section, default=DataConfig(**fields))
    return parser
