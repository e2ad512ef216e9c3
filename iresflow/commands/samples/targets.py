"""Where ``iresflow sample`` may write."""

from pathlib import Path

from jsonargparse import Namespace

from iresflow.commands.output import require_apart, require_outside
from iresflow.models import Flow, ImageFlow
from iresflow.training.runs.known_data import own_places

__all__ = ["require_ending", "require_free"]

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

ARRAYS = (".npz", ".npy")

TABLE = ".csv"


def require_ending(model: Flow, options: Namespace) -> None:
    """Refuses an ``--out`` that doesn't end as a file of what is asked for.

    Raises:
        ValueError: it ends otherwise.
    """
    if not options.out:
        return
    allowed: tuple[str, ...]
    if not isinstance(model, ImageFlow):
        # A picture of vectors lies beside their table.
        allowed, told = (TABLE, *ARRAYS, ".png"), "of vectors are .csv, .npz, .npy or .png"
    elif options.reconstruct or options.interpolate or options.each:
        allowed, told = PICTURES, f"that are pictures end in {', '.join(PICTURES)}"
    else:
        allowed = (*PICTURES, *ARRAYS, "")
        told = f"of images are {', '.join(PICTURES)}, .npz, .npy or a directory (without ending)"
    if Path(options.out).suffix.lower() not in allowed:
        raise ValueError(f"--out {options.out}: samples {told}")


def require_free(options: Namespace) -> None:
    """Refuses an ``--out`` in the place of the run's own data, or pictures among them.

    Raises:
        ValueError: it is one.
        RunError, CheckpointError: the run is damaged.
    """
    if not options.out:
        return
    out, read = Path(options.out), own_places(options.run, options.root)
    written = (
        [out, out.with_suffix(".csv")] if out.suffix.lower() == ".png" else [out]
    )  # of vectors
    for file in written:
        require_apart("--out", file, read)
    if out.suffix.lower() not in (*ARRAYS, TABLE):
        require_outside("--out", out, read)
    if options.each:
        require_outside("--out", out.with_suffix(""), read)
