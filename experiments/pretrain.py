"""The models that travel with the package: trained by ``iresflow train``, scored once, packed.

    python experiments/pretrain.py digits                    train, score on the test split, pack
    python experiments/pretrain.py mnist --root DIR
    python experiments/pretrain.py mnist --run RUN           pack a run that is there already

A packed model is the best checkpoint by validation without the state of its training, with the
score of the test split and the command that trained it. Weights stay in float32: the certificate
is of these very weights. The vectors that the next training step would estimate norms from are in
float16, since they would be a fifth of the file: no evaluation reads them.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import iresflow
from iresflow.cli import main as command
from iresflow.models.certificates.fingerprint import fingerprint
from iresflow.models.files import read_file, write_file
from iresflow.models.pretrained import FOLDER
from iresflow.training.checkpoint import find_checkpoint
from iresflow.training.runs.directory import read_options

__all__ = ["RECIPES", "main", "pack"]

RECIPES: dict[str, tuple[str, ...]] = {
    "two-moons": tuple(
        "--config toy2d --training.steps 1000 --training.decay_steps 0.3 "
        "--training.validate_every 250 --training.log_every 25".split()
    ),
    "digits": ("--config", "digits"),
    "mnist": ("--config", "mnist-small"),
    "fashion-mnist": ("--config", "fashion-mnist", "--training.steps", "2150"),
    "cifar10-subset": ("--config", "cifar10-subset"),
}
"""What ``iresflow train`` is told for each model."""

LARGEST = 2 * 2**20
"""Bytes of a packed model, at most."""


def pack(name: str, run: Path, out: Path = FOLDER) -> Path:
    """Writes the packed model of a run, and returns its file.

    Arguments:
        name: Of the model.
        run: The directory of a run of its recipe that has ended: it has scored its test split.
        out: The directory to write to.

    Raises:
        ValueError: the file would be too large.
        RunError: the run's configuration is damaged.
        CheckpointError: the run has no checkpoint, or it is damaged.
    """
    content = read_file(find_checkpoint(run))
    score = json.loads((run / "evaluation.json").read_text())
    for key in ("training", "version"):
        content.pop(key, None)
    options = content["options"] = read_options(run / "config.yaml")
    options["data"]["root"] = None  # a directory of the machine that trained it
    options["runs"] = "runs"
    first = options["data"]["test"]
    content["pretrained"] = {
        "name": name,
        "data": options["data"]["name"],
        "split": f"{'the first ' if first else ''}{score['samples']} test samples",
        "score": score["mean"],
        "standard_error": score["standard_error"],
        "unit": score["unit"],
        "samples": score["samples"],
        "steps": content["progress"]["step"],
        "command": " ".join(("iresflow train", *RECIPES[name])),
    }
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / f"{name}.pt"
        state = content["model"]["state"]
        for entry in state:
            if entry.endswith(".left"):
                state[entry] = state[entry].half()
        write_file(content, trial)
        # The fingerprint counts these vectors, too.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content["certificate"]["weights"] = fingerprint(iresflow.load(trial))
        write_file(content, trial)
        if (size := trial.stat().st_size) > LARGEST:
            raise ValueError(f"{name} would take {size:,} bytes, and {LARGEST:,} are allowed")
    file = out / f"{name}.pt"
    write_file(content, file)
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and packs one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--root", help="directory of the data")
    parser.add_argument("--run", type=Path, help="a run of the recipe, to pack as it is")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to train")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    run = options.run
    if run is None:
        root = ["--data.root", options.root] if options.root else []
        told = [*RECIPES[options.name], *root, "--runs", str(options.runs)]
        if code := command(["train", *told, "--name", options.name]):
            raise SystemExit(code)
        run = max(options.runs.glob(f"*-{options.name}"))
    print(f"packed      {pack(options.name, run, options.out)}")


if __name__ == "__main__":
    main()
