"""``iresflow evaluate``: the likelihood of a split under a trained model."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from tqdm import tqdm

from iresflow.commands.arguments import add_run_arguments, new_parser, parse
from iresflow.data import Dataset, Split
from iresflow.errors import RunError
from iresflow.training.build import build_dataset, resolve_device
from iresflow.training.checkpoint import find_checkpoint, load_model
from iresflow.training.config import DataConfig
from iresflow.training.evaluate import RECONSTRUCTED, evaluate, reconstruct

__all__ = ["dataset_of_run", "main"]


def dataset_of_run(run: str, root: str | None) -> Dataset:
    """The data set that a run was trained on; ``root`` overrides where it lies.

    Raises:
        RunError: ``run`` is not a run directory.
    """
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise RunError(f"{run} is not a run directory, so the data it was trained on is not known")
    values = yaml.safe_load(file.read_text())
    data = DataConfig(**values["data"])
    if root is not None:
        data.root = root
    return build_dataset(data, values["seed"])


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    parser = new_parser("evaluate", "Scores a trained model on the test split of its data.")
    add_run_arguments(parser)
    parser.add_argument("--split", default="test", choices=["test", "validation", "train"])
    parser.add_argument("--n", type=int, help="samples to score, from the first; all by default")
    parser.add_argument("--batch_size", type=int, default=250, help="samples at a time")
    parser.add_argument("--root", help="directory of the data, where it has moved")
    options = parse(parser, arguments)
    if options.n is not None and options.n < 1 or options.batch_size < 1:
        raise ValueError("--n and --batch_size must be at least 1")
    path = find_checkpoint(options.run, options.checkpoint)
    model, progress = load_model(path, resolve_device(options.device))
    split: Split = getattr(dataset_of_run(options.run, options.root), options.split)
    count = min(options.n or len(split), len(split))
    labels = None if split.labels is None else split.labels[:count]
    split = Split(split.values[:count], labels)
    with tqdm(total=count, unit="sample", disable=None) as bar:
        score = evaluate(
            model, split, seed=options.seed, batch_size=options.batch_size, progress=bar.update
        )
    back = reconstruct(model, split, count=RECONSTRUCTED, seed=options.seed)
    whole = options.split == "test" and options.n is None
    name = "evaluation.json" if whole else f"evaluation-{options.split}-{count}.json"
    file = Path(options.run) / name
    score.write(file, split=options.split, checkpoint=str(path), step=progress.step)
    print(
        f"{options.split:<10} {score}\n"
        f"inverse    largest reconstruction error {back.largest_error:.1e} in x over "
        f"{len(back.values)} samples, certified block error {back.block_error:.1e}\n"
        f"model      step {progress.step}, {progress.seconds / 60:.1f} minutes of training\n"
        f"written    {file}"
    )
    return 0
