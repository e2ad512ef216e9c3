"""How files are read for a checkpoint's model: told by its run, or by the checkpoint itself."""

import re
from dataclasses import replace
from pathlib import Path

from iresflow.data.reading import Reading
from iresflow.errors import CheckpointError
from iresflow.models.files import read_file
from iresflow.training.runs.directory import CONFIG, read_options
from iresflow.training.runs.known_data import KnownData, stored_data_config

__all__ = ["reading_of", "reading_of_run"]


def reading_of(checkpoint: Path) -> Reading:
    """How to read files for a model.

    Arguments:
        checkpoint: The file of the model: in a run's directory, or moved from there, or one that
            ``flow.save`` wrote, which knows nothing of its data.

    Raises:
        CheckpointError: the file is damaged.
        RunError: the run's files are damaged.
    """
    stored = read_file(checkpoint).get("reading")
    if stored is not None:
        try:
            return Reading.from_dict(stored)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{checkpoint} is damaged: it does not say how its data were read"
            ) from None
    return reading_of_run(checkpoint.resolve().parent.parent) or Reading()


def reading_of_run(run: Path) -> Reading | None:
    """How the data of a run were read; None where it doesn't say.

    Raises:
        RunError: its files are damaged.
    """
    if not (run / CONFIG).is_file() or "data" not in read_options(run / CONFIG):
        return None
    config, _ = stored_data_config(run / CONFIG)
    known = KnownData.of(run) or KnownData()
    read = known.fingerprint.reading if known.fingerprint else ""
    bits = re.fullmatch(r"images of (\d+) bits", read)
    return replace(
        known.reading,
        bits=int(bits[1]) if bits else config.bits,
        resize=config.name == "folder",
    )
