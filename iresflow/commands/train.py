"""``iresflow train``: from a configuration to a trained, certified and evaluated model."""

import math
import sys
from collections.abc import Sequence

import torch
import yaml
from jsonargparse import ArgumentParser
from tqdm import tqdm

from iresflow.commands.classifiers import report_certificate
from iresflow.commands.memory import keep_freed_memory
from iresflow.commands.reading.arguments import new_parser
from iresflow.commands.reading.configuration import Asked, configure
from iresflow.commands.scoring import report_model
from iresflow.data import Dataset
from iresflow.data.images.augment import Crop
from iresflow.errors import TrainingInterrupted
from iresflow.lipschitz import compile_kernels
from iresflow.models import Flow, InvertibleClassifier
from iresflow.models.certified import CertifiedModel
from iresflow.models.classifiers.read_outs import SimplifiedReadOut
from iresflow.training import presets
from iresflow.training.build import (
    as_scored,
    augmentations,
    build_dataset,
    build_estimator,
    build_model,
)
from iresflow.training.build_classifier import build_objective, classifies
from iresflow.training.checkpoint import find_checkpoint, load_for_all
from iresflow.training.config import Config, TrainingConfig
from iresflow.training.loop.processes import Processes, join_processes
from iresflow.training.loop.step import own_shares
from iresflow.training.loop.trainer import Trainer
from iresflow.training.objectives.contexts import asked_of
from iresflow.training.runs.directory import RunDirectory
from iresflow.training.runs.known_data import remember, require_same_training
from iresflow.training.start import take_weights

__all__ = ["main"]

DESCRIPTION = """\
Trains a flow, or an invertible classifier (--objective). Without arguments: a flow on the 8 x 8
handwritten digits of scikit-learn, in a few minutes on two CPU cores. Every value of a config file
can be overridden: --model.hidden 64."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    if "--help" in arguments or "-h" in arguments:
        _parser().parse_args(["--help"])
    with join_processes() as processes:
        return _train(arguments, processes)


def _train(arguments: Sequence[str], processes: Processes) -> int:
    asked = processes.on_main(lambda: configure(arguments))
    config, resumed = asked.config, asked.resumed
    if asked.prints:
        print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
        return 0
    keep_freed_memory()
    compile_kernels(config.training.compile)
    device = processes.device(config.device)
    # One process of a machine downloads what is missing.
    whole = processes.one_by_one(lambda: build_dataset(config.data, config.seed))
    dataset = as_scored(whole, config.data)
    torch.manual_seed(config.seed)
    model = build_model(config, dataset).to(device)
    begun = resumed is not None and resumed.checkpoint("last").is_file()
    init = None if begun else config.init
    started = None if init is None else processes.on_main(lambda: take_weights(model, init))
    objective = build_objective(config, model, build_estimator(config))
    batch = min(config.training.batch_size, len(dataset.train))
    own_shares(batch, config.training.accumulate, processes)  # its errors come before the run
    run = resumed or processes.on_main(
        lambda: RunDirectory.create(config.runs, config.name or config.data.name)
    )
    trainer = Trainer(
        model,
        objective,
        asked_of(whole.train),
        asked_of(dataset.validation),
        config.training,
        run=run,
        seed=config.seed,
        augment=augmentations(config.data),
        processes=processes,
        say=lambda line: tqdm.write(line, file=sys.stdout),
    )
    with run.locked(processes):
        if resumed:
            processes.on_main(lambda: require_same_training(run.path, config.data, whole))
            trainer.resume()
        if processes.main:
            if not resumed:
                remember(run.path, whole)
            run.write_config(config.to_dict())
            _announce(run, asked, dataset, model, trainer, processes)
            if started:
                print(f"weights     {started}", flush=True)
        try:
            trainer.train()
        except TrainingInterrupted:
            if processes.main:
                print(
                    f"\ninterrupted at step {trainer.progress.step}, saved. Go on: "
                    f"iresflow train --resume {run.path}"
                )
            return 130
        return _report(run, dataset, device, processes)


def _parser() -> ArgumentParser:
    parser = new_parser("train", DESCRIPTION)
    parser.add_argument(
        "--config",
        help=f"a preset ({', '.join(presets.names())}) or a YAML file; the command line overrides "
        "what it says. By default the preset of data.name",
    )
    parser.add_argument("--resume", help="run directory to go on with, exactly where it stopped")
    parser.add_argument(
        "--print_config", action="store_true", help="print all options that would be used, and end"
    )
    parser.add_class_arguments(Config)
    return parser


def _announce(
    run: RunDirectory,
    asked: Asked,
    dataset: Dataset,
    model: CertifiedModel,
    trainer: Trainer,
    processes: Processes,
) -> None:
    shape = " x ".join(map(str, dataset.shape))
    levels = f", {dataset.levels} grey levels" if dataset.levels else ""
    origin = f" ({dataset.origin})" if dataset.origin else ""
    parameters = sum(p.numel() for p in model.parameters())
    team = "" if processes.count == 1 else f", {processes.count} processes"
    print(
        f"run         {run.path}\n"
        f"options     {asked.origin}\n"
        f"data        {dataset.name}, {shape}{levels}: {len(dataset.train)} train, "
        f"{len(dataset.validation)} validation, {len(dataset.test)} test{origin}\n"
        f"{_changes(asked.config, dataset)}"
        f"model       {len(list(model.blocks()))} residual blocks, {parameters:,} parameters, "
        f"{trainer.device}{team}\n"
        f"steps       {trainer.progress.step} of {_goal(trainer.config)}",
        flush=True,
    )


def _changes(config: Config, dataset: Dataset) -> str:
    """What the random changes of training images mean for scores; see `Augmentation`."""
    side = config.data.crop
    windows = f"windows     random ones of {side} x {side}; scores are of the middle ones\n"
    changes = [c for c in augmentations(config.data) if not isinstance(c, Crop)]
    if not changes:
        return windows if side else ""
    names = " and ".join(type(change).__name__.lower() for change in changes)
    line = f"changes     {names} of training images: scores are of images as they are"
    if not classifies(config):
        bits = sum(change.cost for change in changes) / math.prod(dataset.shape) / math.log(2)
        line += f", and knowing the mixture of all changes costs them {bits:.4f} bits/dim at most"
    return (windows if side else "") + line + "\n"


def _goal(config: TrainingConfig) -> str:
    return f"{config.minutes} minutes" if config.steps is None else str(config.steps)


def _report(
    run: RunDirectory, dataset: Dataset, device: torch.device, processes: Processes
) -> int:
    """Scores the best checkpoint on the test split, once, and says where everything lies."""
    path = processes.on_main(lambda: find_checkpoint(run.path, "best"))
    model, progress = load_for_all(path, device, processes)
    file, again = run.path / "evaluation.json", f"iresflow train --resume {run.path}"
    ended = f"{progress.seconds / 60:.1f} minutes to step {progress.step}, the best by validation"
    origin: dict[str, str | int] = {"split": "test", "checkpoint": str(path)}
    origin["step"] = progress.step
    split = asked_of(dataset.test)
    code = report_model(model, dataset, split, file, origin, again=again, processes=processes)
    if code or not processes.main:
        return code
    if isinstance(model, Flow):
        report_certificate(model)
    print(f"trained     {ended}\ncheckpoint  {path}\nsamples     {run.samples}")
    print(f"metrics     {run.metrics_file}, and tensorboard --logdir {run.events}")
    if isinstance(model, Flow):
        print(f"next        iresflow sample {run.path}")
    elif isinstance(model, InvertibleClassifier) and len(model.shape) == 3 and model.limited:
        split_latent = isinstance(model.read_out, SimplifiedReadOut)
        print(f"next        iresflow sample {run.path}{'' if split_latent else ' --reconstruct'}")
    return 0
