"""What each process of `training/test_processes` runs: worker.py SCENARIO DIRECTORY."""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from iresflow.cli import EXPECTED
from iresflow.cli import main as command
from iresflow.commands.reading.arguments import fail
from iresflow.data import Split, load_dataset
from iresflow.data.images.augment import Flip, Shift
from iresflow.errors import DataError, NonFiniteError, TrainingInterrupted
from iresflow.training.build import build_model
from iresflow.training.checkpoint import load_for_all
from iresflow.training.config import Config, LogDetConfig, ModelConfig, TrainingConfig
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.evaluation.rounds import Evaluation
from iresflow.training.loop.guard import Guard
from iresflow.training.loop.processes import Alone, Processes, join_processes
from iresflow.training.loop.trainer import Trainer
from iresflow.training.objectives.base import Objective, Terms
from iresflow.training.objectives.likelihood import MaximumLikelihood
from iresflow.training.runs.directory import RunDirectory

SIGNAL_AT, BAD_AT, KILLED_AT = 2, 4, 5


def configuration(**training) -> Config:
    """Batches that can't be split evenly, mirrored images, series of many lengths."""
    settings = {"steps": 8, "batch_size": 9, "validate_every": 4, "validation_samples": 8}
    return Config(
        model=ModelConfig(blocks=(1, 1), hidden=4),
        log_det=LogDetConfig(terms=12, tol=1e-4),
        training=TrainingConfig(
            **{**settings, "log_every": 2, "warmup_steps": 2, "learning_rate": 0.02, **training}
        ),
    )


@dataclass(frozen=True)
class Acting(MaximumLikelihood):
    """Maximum likelihood, and something that is done with the terms of each batch."""

    action: Callable[[Terms], Terms]

    def __call__(self, model, batch, stream) -> Terms:
        return self.action(super().__call__(model, batch, stream))


def new_trainer(
    directory: Path,
    processes: Processes | None = None,
    objective: Objective | None = None,
    guard: Guard | None = None,
    log_det: Mapping[str, Any] | None = None,
    **training,
) -> Trainer:
    config, dataset = configuration(**training), load_dataset("digits")
    config = replace(config, log_det=replace(config.log_det, **(log_det or {})))
    processes = processes or Alone()
    # Each process starts from other weights: those of the main one count.
    torch.manual_seed(processes.rank)
    run = processes.on_main(lambda: RunDirectory.create(directory, "run"))
    flow = build_model(config, dataset)
    return Trainer(
        flow,
        objective or MaximumLikelihood(),
        dataset.train,
        dataset.validation,
        config.training,
        run=run,
        augment=(Flip(), Shift(1)),
        processes=processes,
        guard=guard,
        bar=False,
    )


def score_of(model, dataset, processes: Processes) -> Evaluation:
    """An evaluation in several rounds, of batches that are no multiple of two."""
    split = Split(dataset.test.values[:33])
    precision = Precision(tol=1e-3, limit=3)
    return evaluate(model, split, batch_size=7, precision=precision, processes=processes)


def agree(processes: Processes, directory: Path) -> None:
    """Several runs of two processes, and an error in one of them at the end."""
    trainer = new_trainer(directory, processes)
    trainer.train()
    torch.save(trainer.model.state_dict(), directory / f"equal-{processes.rank}.pt")
    if processes.main:
        torch.save(trainer.average.state_dict(), directory / "average.pt")

    model, _ = load_for_all(trainer.run.checkpoint("last"), trainer.device, processes)
    score = score_of(model, load_dataset("digits"), processes)
    (directory / f"score-{processes.rank}").write_text(repr(score))

    trainer = new_trainer(directory, processes, accumulate=2, validate_every=8)
    trainer.train()
    torch.save(trainer.model.state_dict(), directory / f"accumulated-{processes.rank}.pt")

    # A limit in minutes, by the clock of the main process: rates and end agree.
    limits = {"steps": None, "minutes": 0.01, "decay_steps": 0.5, "validate_every": 0.3}
    trainer = new_trainer(directory, processes, **limits, log_every=1)
    trainer.train()
    rates = [row["train/learning_rate"] for row in trainer.recorder.history if len(row) > 5]
    torch.save(
        {"step": trainer.progress.step, "rates": rates, **trainer.model.state_dict()},
        directory / f"timed-{processes.rank}.pt",
    )

    def interrupt(terms):
        if processes.rank == 1 and trainer.progress.step == SIGNAL_AT:
            signal.raise_signal(signal.SIGTERM)
        return terms

    trainer = new_trainer(directory, processes, Acting(interrupt))
    try:
        trainer.train()
    except TrainingInterrupted:
        (directory / f"interrupted-{processes.rank}").write_text(str(trainer.progress.step))

    def spoil(terms):
        if processes.rank == 1 and trainer.progress.step == BAD_AT:
            return replace(terms, loss=terms.loss * torch.nan)
        return terms

    trainer = new_trainer(directory, processes, Acting(spoil))
    try:
        trainer.train()
    except NonFiniteError as error:
        (directory / f"bad-{processes.rank}").write_text(str(error))

    if processes.rank == 1:
        raise DataError("the second process has no data")
    processes.gather(None)


def die() -> int:
    """``iresflow train`` with a second process that is killed in the middle of a step."""
    steps, original = [], MaximumLikelihood.__call__

    def killing(*arguments):
        steps.append(None)
        if os.environ["RANK"] == "1" and len(steps) > KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    MaximumLikelihood.__call__ = killing
    return command(["train", *sys.argv[2:]])


def main() -> int:
    torch.set_num_threads(1)
    if sys.argv[1] == "die":
        return die()
    try:
        with join_processes() as processes:
            agree(processes, Path(sys.argv[2]))
    except EXPECTED as error:
        fail(" ".join([str(error), *getattr(error, "__notes__", [])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
