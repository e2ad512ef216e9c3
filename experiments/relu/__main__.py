"""The papers' experiments, one after another: ``python -m experiments.relu EXPERIMENT``.

``iresflow relu EXPERIMENT`` does the same where the package lies in its source checkout.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from types import ModuleType
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from threadpoolctl import threadpool_limits

from experiments.relu.base import Report, Samples
from iresflow.commands.arguments import fail, new_parser
from iresflow.commands.memory import keep_freed_memory
from iresflow.commands.options import read_options
from iresflow.data import Dataset, Split
from iresflow.errors import DataError
from iresflow.training.build import build_dataset
from iresflow.training.config import DataConfig
from iresflow.training.runs.directory import new_directory
from iresflow.training.sections import option_kinds, section_of
from iresflow.training.values import converted

__all__ = ["main"]

EXPERIMENTS = {
    "preimage": "the sets of inputs that a layer maps to one output",
    "stability": "singular values of the linearisation, layer by layer",
    "frames": "bias estimation, and reconstruction from one layer",
    "inversion": "inversion of generative networks by linear programs",
}


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        names = "\n".join(f"  {name:<10} {what}" for name, what in EXPERIMENTS.items())
        print(
            f"usage: iresflow relu EXPERIMENT ...\n\n{names}\n\n"
            "iresflow relu EXPERIMENT --help explains each option; iresflow relu analyse FACTORY "
            "reports on one's own network."
        )
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in EXPERIMENTS:
        fail(f"unknown experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}", code=2)
    experiment = import_module(f"experiments.relu.{name}")
    if "--help" in rest or "-h" in rest:
        _parser(name, experiment).parse_args(["--help"])
    settings, configs, others = _options(experiment, rest)
    mirrored = [section for section, config in configs.items() if config.flip or config.shift]
    if mirrored:
        fail(f"{mirrored[0]}.flip and .shift: only flows train on changed images", code=2)
    keep_freed_memory()
    torch.manual_seed(settings.seed)
    data = {section: _load(section, config, settings.seed) for section, config in configs.items()}
    path = new_directory(others.get("runs", "runs"), others.get("name") or f"relu-{name}")
    used = {**asdict(settings), **{section: asdict(c) for section, c in configs.items()}}
    (path / "config.yaml").write_text(yaml.safe_dump(used, sort_keys=False))
    print(f"run         {path}", flush=True)
    began, computed = perf_counter(), process_time()
    # The programs' matrices are small: a second thread of scipy's BLAS would only wait.
    with threadpool_limits(1, user_api="blas"):
        experiment.run(settings, data, Report(path, f"iresflow relu {name}"))
    minutes, of_cpu = (perf_counter() - began) / 60, (process_time() - computed) / 60
    print(f"took        {minutes:.1f} minutes, {of_cpu:.1f} of processor time")
    print(f"results     {path / 'results.md'}, results.json, and the figures beside them")
    return 0


def _options(
    experiment: ModuleType, arguments: Sequence[str]
) -> tuple[Any, dict[str, DataConfig], dict[str, Any]]:
    """The experiment's settings, its data sets by their names, and the other options."""
    sections: dict[str, dict[str, Any]] = experiment.DATA
    own = option_kinds(experiment.Settings)
    kinds = {"quick": bool, "runs": str, "name": str | None, **own}
    for section in sections:
        kinds |= {section: DataConfig, **option_kinds(DataConfig, f"{section}.")}
    try:
        values = read_options(arguments, kinds, Path).values
        given = {field: values.pop(field) for field in own if field in values}
        settings = section_of(experiment.Settings, given)
        configs = {
            section: section_of(DataConfig, {**fields, **values.pop(section, {})}, f"{section}.")
            for section, fields in sections.items()
        }
        others = {field: converted(value, kinds[field], field) for field, value in values.items()}
    except ValueError as error:
        fail(str(error), code=2)
    return experiment.quick(settings) if others.get("quick") else settings, configs, others


def _parser(name: str, experiment: ModuleType) -> ArgumentParser:
    parser = new_parser(f"relu {name}", experiment.__doc__ or "")
    parser.add_argument("--config", help=f"a YAML file, such as experiments/relu/{name}.yaml")
    parser.add_argument("--quick", action="store_true", help="small sizes, within a minute")
    parser.add_argument("--runs", default="runs", help="directory that holds the runs")
    parser.add_argument("--name", help="name of the run, part of its directory")
    parser.add_class_arguments(experiment.Settings)
    for section, fields in experiment.DATA.items():
        parser.add_class_arguments(DataConfig, section, default=DataConfig(**fields))
    return parser


def _load(section: str, config: DataConfig, seed: int) -> Samples:
    try:
        return _samples(build_dataset(config, seed))
    except DataError as error:
        # Advice names the options of a flow's data, which are called otherwise here.
        raise DataError(str(error).replace("--data.", f"--{section}.")) from None


def _samples(dataset: Dataset) -> Samples:
    def floats(split: Split) -> torch.Tensor:
        top = 1 if dataset.levels is None else dataset.levels - 1
        return split.values.float() / top

    # Nothing is decided on the validation part, so it stays with the training data.
    parts = (dataset.train, dataset.validation)
    labels = [part.labels for part in parts if part.labels is not None]
    return Samples(
        dataset.name,
        torch.cat([floats(part) for part in parts]),
        torch.cat(labels) if labels else None,
        floats(dataset.test),
        dataset.test.labels,
        dataset.classes,
    )


if __name__ == "__main__":
    from iresflow.cli import main as command_line  # which says in one line what went wrong

    sys.exit(command_line(["relu", *sys.argv[1:]]))
