"""``iresflow evaluate``: the likelihood of a split under a trained model."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from iresflow.commands.reading.arguments import add_run_arguments, new_parser, parse
from iresflow.commands.scoring import STOPPED, report_model
from iresflow.lipschitz import compile_kernels
from iresflow.training.checkpoint import find_checkpoint, load_for_all
from iresflow.training.evaluation.evaluate import Precision
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.loop.processes import Processes, join_processes
from iresflow.training.objectives.contexts import asked_of
from iresflow.training.runs.known_data import load_data

__all__ = ["main"]

DESCRIPTION = """\
Scores a trained model (its averaged weights) on the test split of its data: a flow by its
likelihood, a classifier by its error, and by what a fresh classifier finds in both parts of its
latent. With --tol, rounds of
new dequantisation noise and new probes are added until truncation bound and standard error of both
are below the tolerance. An evaluation that was stopped goes on where it was, by the same command.
The exit code is 1 if the tolerance was not met.

With --data and --scores: writes the log-density of each of your own samples, with its error, to a
file. --data is a directory of images, an image, or a .npy or .npz file of integers (N, C, H, W);
for models of vectors, a table (.csv, .parquet, .npy, .npz). Of images the file has bits/dim, of
vectors log-densities in nats. Rows are counted from 0. RUN may be a checkpoint file alone. Image
files and .npy arrays are read in batches, other files whole. When it is stopped, the scores so far
stay in a file that ends in .partial."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns 0 if the tolerance was met, or none was asked for."""
    with join_processes() as processes:
        return _evaluate(arguments, processes)


def _evaluate(arguments: Sequence[str], processes: Processes) -> int:
    options = processes.on_main(lambda: parse(_parser(), arguments))
    if options.n is not None and options.n < 1 or options.batch_size < 1:
        raise ValueError("--n and --batch_size must be at least 1")
    if options.data or options.scores:
        return _score_own_samples(options, processes)
    compile_kernels()
    precision = Precision(
        tol=options.tol,
        probes=options.probes,
        importance_samples=options.importance_samples,
        limit=options.limit,
    )
    path = processes.on_main(lambda: find_checkpoint(options.run, options.checkpoint))
    model, step = load_for_all(path, processes.device(options.device), processes)
    dataset = processes.one_by_one(
        lambda: load_data(options.run, root=options.root, split=options.split)
    )
    split: Samples = asked_of(getattr(dataset, options.split))
    count = min(options.n or len(split), len(split))
    split = Batch.of(split, slice(count))
    whole = options.split == "test" and options.n is None
    name = "evaluation" if whole else f"evaluation-{options.split}-{count}"
    run = Path(options.run)
    file = run / f"{name}.json" if run.is_dir() else Path(f"{run.stem}-{name}.json")
    code = report_model(
        model,
        dataset,
        split,
        file,
        {"split": options.split, "checkpoint": str(path), "step": step.step},
        again="the same command",
        processes=processes,
        precision=precision,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    if processes.main and code != STOPPED:
        minutes = step.seconds / 60
        print(f"model       step {step.step}, {minutes:.1f} minutes of training")
        print(f"written     {file}")
    return code


def _score_own_samples(options: Namespace, processes: Processes) -> int:
    if not (options.data and options.scores):
        raise ValueError("--data and --scores go together: samples to score, and a file to write")
    given = [name for name in ("n", "tol", "root") if getattr(options, name) is not None]
    if given:
        raise ValueError(f"--{given[0]} is for the data of the run, not for --data")
    if processes.count > 1:
        raise ValueError("own samples are scored by one process")
    from iresflow.commands.scores import score_own_samples

    return score_own_samples(options)


def _parser() -> ArgumentParser:
    parser = new_parser("evaluate", DESCRIPTION)
    add_run_arguments(parser)
    parser.add_argument("--split", default="test", choices=["test", "validation", "train"])
    parser.add_argument("--n", type=int, help="samples to score, from the first; all by default")
    parser.add_argument("--tol", type=float, help="in bits/dim (images) or nats (vectors)")
    parser.add_argument("--probes", type=int, default=2, help="probes in each round, at least 2")
    parser.add_argument(
        "--importance-samples",
        type=int,
        default=1,
        help="draws of noise for an importance-weighted bound, 1 for none",
    )
    parser.add_argument("--limit", type=int, default=200, help="rounds at most")
    parser.add_argument(
        "--batch-size", "--batch_size", type=int, default=250, help="samples at a time"
    )
    parser.add_argument("--root", help="directory of the data, where it has moved")
    own = parser.add_argument_group("samples of your own")
    own.add_argument("--data", help="file or directory of samples to score one by one")
    own.add_argument("--scores", help="file to write their log-densities to, .csv or .npy")
    own.add_argument(
        "--draws", type=int, default=4, help="of dequantisation noise for each image, at least 2"
    )
    own.add_argument(
        "--level", type=float, default=0.95, help="of the intervals from low to high in the file"
    )
    own.add_argument("--label", type=int, help="class of all samples; else that in the data")
    own.add_argument(
        "--resize",
        action="store_true",
        help="resize and crop image files, as training on a folder does; a model that was trained "
        "on one does so anyway",
    )
    return parser
