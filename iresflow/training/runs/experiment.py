"""Whether a run that is gone on with is still the experiment that it was begun as."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from warnings import warn

from iresflow.errors import RunError
from iresflow.training.checkpoint import options_of
from iresflow.training.config import Config
from iresflow.training.runs.directory import RunDirectory, read_options
from iresflow.training.runs.known_data import data_config
from iresflow.training.sections import section_of

__all__ = ["require_same_experiment", "stored_config"]

SECTIONS = ("data", "model", "log_det")
ALONE = (
    "training.optimizer",
    "seed",
    "init",
    "objective",
    "likelihood_weight",
    "nuisance_weight",
)
PLACES = ("root", "cache")


def require_same_experiment(run: RunDirectory, config: Config) -> None:
    """Refuses other options than a run was trained with, but for those that it may change.

    The last checkpoint says what these were; config.yaml, which can be edited, only where a
    checkpoint of an older version says nothing.

    Raises:
        RunError: options of the data, the model, the objective, the log-determinants, the
            optimiser or the seed differ; the message says which.
        CheckpointError: the checkpoint is damaged.

    Warns:
        UserWarning: other options in config.yaml are not those of the checkpoint.
    """
    written, last = read_options(run.config_file), run.checkpoint("last")
    trained = options_of(last) if last.is_file() else {}
    before = stored_config(trained or written, last if trained else run.config_file)
    stored, asked = dict(_leaves(before.to_dict())), dict(_leaves(config.to_dict()))
    changed = [
        f"{name} ({stored.get(name)}, not {value})"
        for name, value in asked.items()
        if _belongs_to_experiment(name) and stored.get(name) != value
    ]
    if changed:
        raise RunError(
            f"{run.path} was trained with other values of {', '.join(changed)}; a resumed run may "
            "change the options of training, the device and where data lie only"
        )
    trained_leaves = dict(_leaves(trained))
    edited = [
        f"{name} is {value} and was {trained_leaves[name]}"
        for name, value in _leaves(written)
        if name in trained_leaves and trained_leaves[name] != value
    ]
    if edited:
        warn(
            f"{run.config_file} has changed since the last checkpoint, and the run goes on with "
            f"what it says now: {'; '.join(edited)}",
            stacklevel=2,
        )


def stored_config(stored: Mapping[str, Any], file: Path) -> Config:
    """The configuration that a file holds: options that are younger than it had their defaults.

    Raises:
        RunError: it is damaged.
    """
    try:
        config = section_of(Config, {k: v for k, v in stored.items() if k != "data"})
        config.data = data_config(stored.get("data"))
    except ValueError as error:
        raise RunError(f"{file} is damaged, or of another version: {error}") from None
    return config


def _belongs_to_experiment(name: str) -> bool:
    section = name.partition(".")[0]
    return name in ALONE or (section in SECTIONS and not name.endswith(PLACES))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and not prefix:
            yield from _leaves(value, f"{key}.")
        else:
            yield prefix + key, value
