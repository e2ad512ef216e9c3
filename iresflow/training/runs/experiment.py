"""Whether a run that is gone on with is still the experiment that it was begun as."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any
from warnings import warn

from iresflow.errors import RunError
from iresflow.training.checkpoint import options_of
from iresflow.training.config import Config
from iresflow.training.runs.directory import RunDirectory, read_options
from iresflow.training.runs.known_data import data_config

__all__ = ["require_same_experiment"]

SECTIONS = ("data", "model", "log_det")
ALONE = ("training.optimizer", "seed")
PLACES = ("root", "cache")


def require_same_experiment(run: RunDirectory, config: Config) -> None:
    """Refuses other options than a run was trained with, but for those that it may change.

    The last checkpoint says what these were; config.yaml, which can be edited, only where a
    checkpoint of an older version says nothing.

    Raises:
        RunError: options of the data, the model, the log-determinants, the optimiser or the seed
            differ; the message says which.
        CheckpointError: the checkpoint is damaged.

    Warns:
        UserWarning: other options in config.yaml are not those of the checkpoint.
    """
    written, last = read_options(run.config_file), run.checkpoint("last")
    trained = options_of(last) if last.is_file() else {}
    before, now = _completed(trained or written), config.to_dict()
    now["data"] = asdict(config.data)
    stored, asked = dict(_leaves(before)), dict(_leaves(now))
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


def _completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """All options: those that are younger than the run had their defaults."""
    before = Config().to_dict()
    for name, values in stored.items():
        known = before.get(name)
        before[name] = {**known, **values} if isinstance(known, dict) else values
    before["data"] = asdict(data_config(stored["data"]))
    return before


def _belongs_to_experiment(name: str) -> bool:
    section = name.partition(".")[0]
    return name in ALONE or (section in SECTIONS and not name.endswith(PLACES))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and not prefix:
            yield from _leaves(value, f"{key}.")
        else:
            yield prefix + key, value
