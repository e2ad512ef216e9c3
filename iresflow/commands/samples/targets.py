"""Where ``iresflow sample`` may write."""

from pathlib import Path

from jsonargparse import Namespace

from iresflow.commands.output import require_apart, require_outside
from iresflow.training.runs.known_data import own_places

__all__ = ["ARRAYS", "require_free"]

ARRAYS = (".npz", ".npy", ".csv")
"""Endings of files that hold no pictures."""


def require_free(options: Namespace) -> None:
    """Refuses an ``--out`` in the place of the run's own data, or pictures among them.

    Raises:
        ValueError: it is one.
        RunError, CheckpointError: the run is damaged.
    """
    if not options.out:
        return
    out, read = Path(options.out), own_places(options.run, options.root)
    written = [out, out.with_suffix(".csv")] if out.suffix == ".png" else [out]  # of vectors
    for file in written:
        require_apart("--out", file, read)
    if out.suffix not in ARRAYS:
        require_outside("--out", out, read)
    if options.each:
        require_outside("--out", out.with_suffix(""), read)
