"""What a run knows of its data: kept beside its configuration, compared whenever they are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final
from warnings import warn

from iresflow.data import OWN_DATA, Changes, Dataset, Fingerprint
from iresflow.data.reading import Reading
from iresflow.errors import DataError, RunError
from iresflow.models.files import read_file
from iresflow.training.build import as_scored, build_dataset
from iresflow.training.config import DataConfig
from iresflow.training.runs.directory import read_options, write_whole
from iresflow.training.sections import section_of
from iresflow.training.values import converted, shown

__all__ = [
    "KnownData",
    "data_config",
    "load_data",
    "own_places",
    "remember",
    "require_same_training",
    "stored_data_config",
]

FILE = "data.json"


@final
@dataclass(frozen=True, eq=False)
class KnownData:
    """What a run has stored of its data.

    Arguments:
        fingerprint: Of the samples; ``None`` where they are drawn from a seed.
        reading: What their values mean, but for what the run's configuration says.
    """

    fingerprint: Fingerprint | None = None
    reading: Reading = Reading()

    @classmethod
    def of(cls, run: str | Path) -> "KnownData | None":
        """What the run knows; ``None`` for a run of version 0.1.

        Raises:
            RunError: the file is damaged.
        """
        file = Path(run) / FILE
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text())
            prints = values["fingerprint"]
            return cls(
                None if prints is None else Fingerprint.from_dict(prints),
                Reading.from_dict({**Reading().to_dict(), **values}),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is damaged ({type(error).__name__}: {error})") from None

    def changes_to(self, dataset: Dataset) -> Changes:
        """What has happened to the data since."""
        if self.fingerprint is None or dataset.fingerprint is None:
            return Changes({}, None)
        return self.fingerprint.changes_to(dataset.fingerprint)


def remember(run: str | Path, dataset: Dataset) -> None:
    """Stores what a run shall know of its data."""
    prints, reading = dataset.fingerprint, Reading.of(dataset)
    values = {"fingerprint": prints and prints.to_dict(), **reading.to_dict()}
    write_whole(Path(run) / FILE, json.dumps(values))


def data_config(values: object) -> DataConfig:
    """The section of data of a run's configuration; runs of version 0.1 keep their rules.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"data holds the options of data, got {shown(values)}")
    config = section_of(DataConfig, values, "data.")
    if config.name in OWN_DATA and "order" not in values:
        config.order = "shuffle"
        if config.name == "folder":
            config.bits = 16
    return config


def stored_data_config(file: Path) -> tuple[DataConfig, int]:
    """The section of data in a run's config.yaml, and the seed.

    Raises:
        RunError: the file is damaged.
    """
    values = read_options(file)
    try:
        return data_config(values.get("data")), converted(values.get("seed"), int, "seed")
    except ValueError as error:
        raise RunError(f"{file} is damaged, or of another version: {error}") from None


def load_data(run: str | Path, *, root: str | None = None, split: str = "test") -> Dataset:
    """The data of a run, as they are now.

    Arguments:
        run: The run directory; or a checkpoint file, which knows the options of data, and so the
            sets that this package names.
        root: Where they lie, if they have moved.
        split: The split that a model of the run is to be judged on.

    Raises:
        RunError: ``run`` is not a run directory, or its configuration is damaged; or it is a file
            of a model of one's own data.
        CheckpointError: it is a damaged file.
        DataError: the model was trained on samples of that split, or values of all samples are
            read in another way.

    Warns:
        UserWarning: the split is another than it was when the run was made, or that can't be told.
    """
    config, seed = _data_options(Path(run))
    if root is not None:
        config.root = root
    if Path(run).is_file():
        return as_scored(build_dataset(config, seed), config)
    known = KnownData.of(run)
    dataset = build_dataset(config, seed, None if known is None else known.reading.scaling)
    if known is None:
        _warn_of_old_run(run, config)
        return as_scored(dataset, config)
    changes = known.changes_to(dataset)
    leaked = changes.moved("train", split) if split != "train" else 0
    if leaked or changes.reading is not None:
        what = f"{leaked} samples of the {split} split were trained on" if leaked else ""
        raise DataError(
            f"the data of {run} have changed, and can't judge its model"
            + (f": {what}" if what else "")
            + f" ({changes})"
        )
    if changes.touch(split):
        warn(f"the {split} split is another than when {run} was made: {changes}", stacklevel=2)
    return as_scored(dataset, config)


def own_places(run: str | Path, root: str | None = None) -> list[Path]:
    """The files and directories of one's own that a run or a checkpoint file was trained on.

    Arguments:
        run: The run directory, or the file.
        root: Where they lie, if they have moved: it is one of them, too.

    Raises:
        RunError: the run's configuration is damaged.
        CheckpointError: it is a damaged file.
    """
    known = _known_options(Path(run))
    if known is None or known[0].name not in OWN_DATA:
        return []
    config = known[0]
    places = (root, config.root, config.validation_root, config.test_root)
    return [Path(place) for place in places if place is not None]


def _data_options(run: Path) -> tuple[DataConfig, int]:
    """The section of data of a run or of one of its checkpoints, and the seed."""
    known = _known_options(run)
    # Which samples of one's own were trained on is known to the run's directory alone.
    if known is None or (run.is_file() and known[0].name in OWN_DATA):
        raise RunError(
            f"{run} is not a run directory, so which samples it was trained on is not known: "
            "evaluate --data FILE --scores OUT scores samples of your own"
        )
    return known


def _known_options(run: Path) -> tuple[DataConfig, int] | None:
    """The section of data and the seed, as far as a run or a file says them."""
    if (file := run / "config.yaml").is_file():
        return stored_data_config(file)
    options = read_file(run).get("options") if run.is_file() else None
    if not options or "data" not in options:
        return None
    return data_config(options["data"]), converted(options.get("seed"), int, "seed")


def require_same_training(run: str | Path, config: DataConfig, dataset: Dataset) -> None:
    """Refuses to go on with a run whose training or validation data are others now.

    Raises:
        RunError: they are; it says what has changed.

    Warns:
        UserWarning: the test split is another, or whether any is can't be told.
    """
    known = KnownData.of(run)
    if known is None:
        _warn_of_old_run(run, config)
        remember(run, dataset)
        return
    changes = known.changes_to(dataset)
    if changes.touch("train") or changes.touch("validation"):
        raise RunError(
            f"the data that {run} was trained on have changed: {changes}. Go on with the data of "
            "then, or start a new run"
        )
    if changes:
        warn(f"the data of {run} have changed: {changes}", stacklevel=2)


def _warn_of_old_run(run: str | Path, config: DataConfig) -> None:
    if config.name in OWN_DATA:
        warn(
            f"{run} was made before runs knew their data: its splits are drawn by the rule of "
            "then, and are right only if nothing was added to the data or removed since",
            stacklevel=3,
        )
