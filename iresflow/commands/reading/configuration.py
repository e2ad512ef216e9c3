"""From a command line to the configuration of a run, by presets, files and earlier runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from iresflow.commands.reading.arguments import fail
from iresflow.commands.reading.options import merged, read_options
from iresflow.models import pretrained
from iresflow.training import presets
from iresflow.training.config import Config, DataConfig
from iresflow.training.runs import directory
from iresflow.training.runs.directory import RunDirectory
from iresflow.training.runs.experiment import require_same_experiment, stored_config
from iresflow.training.sections import option_kinds, section_of
from iresflow.training.values import read_yaml

__all__ = ["Asked", "configure"]

PLACES = ("root", "validation_root", "test_root", "cache")


@final
@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        config: All options.
        resumed: The run that is gone on with; None for a new one.
        origin: Where options are from that the command line doesn't set, in words.
        prints: Whether the configuration is to be printed, and no more.
    """

    config: Config
    resumed: RunDirectory | None
    origin: str
    prints: bool


def configure(arguments: Sequence[str]) -> Asked:
    """The configuration of ``iresflow train``; options that are wrong end the process.

    Raises:
        RunError: the run can't be gone on with so.
        CheckpointError: its checkpoint is damaged.
    """
    kinds = {"resume": str | None, "print_config": bool, **option_kinds(Config)}
    try:
        given = read_options(arguments, kinds, presets.find)
        values = given.values
        prints, run = bool(values.pop("print_config", False)), values.pop("resume", None)
        resumed = None if run is None else RunDirectory.open(run)
        below, origin = _below(values, given.files, resumed)
        if resumed is not None:
            _require_same_place(given.typed, below, resumed)
        config = section_of(Config, merged(below, values))
    except ValueError as error:
        fail(str(error), code=2)
    if config.name is None and given.files and not resumed:
        config.name = given.files[-1].stem
    for place in PLACES:
        if (path := getattr(config.data, place)) is not None:
            # The run must find its data from any working directory.
            setattr(config.data, place, str(Path(path).absolute()))
    if config.init is not None:
        config.init = str(Path(pretrained.located(config.init)).absolute())
    if resumed:
        require_same_experiment(resumed, config)
    return Asked(config, resumed, origin, prints)


def _require_same_place(
    typed: Mapping[str, Any], below: Mapping[str, Any], run: RunDirectory
) -> None:
    """Refuses another name or place for a run that has both: it would go on where it is.

    Raises:
        ValueError: one is asked for.
    """
    there = {"name": (below.get("name"),), "runs": (below.get("runs"), str(run.path.parent))}
    for option, known in there.items():
        if typed.get(option, known[0]) not in known:
            raise ValueError(
                f"--{option} {typed[option]} is for new runs, and {run.path} is gone on with: "
                "leave it out, or start a new run with --init"
            )


def _below(
    given: Mapping[str, Any], files: Sequence[Path], resumed: RunDirectory | None
) -> tuple[Mapping[str, Any], str]:
    """What counts where neither files nor the command line say anything, and its origin."""
    if resumed is not None:
        file = resumed.config_file
        return stored_config(directory.read_options(file), file).to_dict(), str(file)
    if files:
        return {}, ", ".join(map(presets.described, files))
    data = given.get("data")
    data_name = data.get("name", DataConfig.name) if isinstance(data, Mapping) else DataConfig.name
    preset = presets.of_data(data_name)
    if preset is None:
        return {}, "the defaults"
    origin = f"preset {preset}, as for any data.name {data_name}; --config NAME for another"
    return read_yaml(presets.find(preset)), origin
