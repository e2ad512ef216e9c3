"""Training from Python: the loop of ``iresflow train`` for a model and tensors."""

import dataclasses
import difflib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, final

from torch import nn

from iresflow.data.images.augment import Augmentation, Flip
from iresflow.errors import RunError
from iresflow.models import Flow, InvertibleClassifier
from iresflow.training.checkpoint import options_of
from iresflow.training.config import TrainingConfig
from iresflow.training.loop.inputs import Array, divided, samples_of
from iresflow.training.loop.trainer import Trainer
from iresflow.training.objectives.base import Objective, OnValidation
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.objectives.likelihood import MaximumLikelihood
from iresflow.training.runs.directory import RunDirectory, read_options
from iresflow.training.runs.recorder import Row

__all__ = ["Fitted", "fit", "objective_of"]

DEFAULTS: dict[str, Any] = {"decay_steps": 0.3, "validate_every": 0.05}
"""Where `fit` differs from the options of ``iresflow train``, whose runs have a known length."""

OPTIONS = "fit.yaml"
"""The file of a run that holds its options."""

ELSEWHERE = {
    "compile": "call iresflow.compile_kernels() before",
    "recompute": "set branch.recompute of the blocks",
}
"""Options of a run that are no matter of the loop, and what does the same."""


@final
@dataclass(frozen=True)
class Fitted:
    """A training that is over.

    Attributes:
        model: The model that was passed, in eval mode, with the best weights.
        history: What was logged: mappings with a ``step`` each, ``train/...`` numbers every
            `log_every` steps, and ``validation/...`` numbers.
        best: The best validation score, in the unit of the loss; lower is better. Infinite
            without a validation split.
        steps: Optimiser steps done.
        seconds: Time spent in them.
        run: The run directory, or None.
    """

    model: nn.Module
    history: list[Row]
    best: float
    steps: int
    seconds: float
    run: Path | None


@singledispatch
def objective_of(model: nn.Module) -> Objective:
    """What `fit` minimises where it is told nothing; a room with other models registers theirs.

    Raises:
        ValueError: nothing is known for such a model.
    """
    raise ValueError(
        f"fit knows no objective for a {type(model).__name__}: pass one, objective=..."
    )


@objective_of.register
def _(model: Flow) -> Objective:
    return MaximumLikelihood()


@objective_of.register
def _(model: InvertibleClassifier) -> Objective:
    return CrossEntropy()


def fit(
    model: nn.Module,
    x: Array,
    labels: Array | None = None,
    *,
    context: Array | None = None,
    validation: float | int | tuple[Array, Array | None] | None = 0.1,
    objective: Objective | None = None,
    minutes: float | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    flip: bool = False,
    augment: Sequence[Augmentation] = (),
    on_validation: OnValidation | None = None,
    bar: bool = True,
    title: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **options: Any,  # noqa: ANN401 (the fields of TrainingConfig)
) -> Fitted:
    """Trains a model in place, and leaves it in eval mode with the best weights.

    ActNorm that has seen no data is initialised. The weights that are left are the averaged ones
    with the best validation score, or the last ones where no split is held out; those of a flow
    have their certified norms enforced. An error or Ctrl-C leaves the model so too.

    Arguments:
        model: On its device, which the data is moved to.
        x: ``(N, *event)``: integers 0 .. levels - 1 for an `ImageFlow`, floats for other flows,
            either for an `InvertibleClassifier`, what the objective takes for other models.
        labels: Class numbers ``(N,)`` or what the objective takes; None for none.
        context: Of conditional flows, ``(N, context_dim)``, or class numbers ``(N,)``; the same
            as ``labels``.
        validation: Samples that are held out to choose the best weights by, at random: a count or
            a fraction below 1; or ``(x, labels)``; None for none. At most ``validation_samples``
            of them are scored, 512 unless that is given.
        objective: What is minimised; None for what the model is made for.
        minutes: Of training steps; validations come on top. With a number, `steps` has no limit
            unless it is given, and the fall of the learning rate ends with the time.
        run: A directory for metrics, pictures and checkpoints; made if it is missing.
        resume: Whether to go on from the checkpoint in ``run``, with the same data and model.
        seed: Of all random streams.
        flip: Whether images are mirrored at random.
        augment: Further random changes of training images, such as `Shift`, one after another;
            with `Crop` the model is one of windows, and validated on those in the middle.
        on_validation: Called after each validation with the steps done, the averaged model in
            eval mode (copy it to keep it) and its `Score` or None; True ends the training.
        bar: Whether to show a progress bar, in a terminal or notebook.
        title: Of that bar.
        clock: Seconds by which the minutes are counted: ``time.process_time`` counts those of
            the processor, over all threads, and leaves out what other programs take.
        options: The fields of `TrainingConfig`, such as ``steps=2000``, ``batch_size=128``,
            ``optimizer="adamw"``, ``patience=5``. Here decay_steps is 0.3 and validate_every 0.05
            if they are not given.

    Raises:
        ValueError: data, labels or options that don't fit.
        NonFiniteError: a loss or gradient is not finite.
        RunError: ``run`` holds a training already, and ``resume`` is not set; or it is one of
            another model, seed or optimiser; or another process trains in it.
        CheckpointError: a checkpoint can't be written, or is damaged or missing.
        TrainingInterrupted: on Ctrl-C.
    """
    config = _config(minutes, options)
    if next(model.parameters(), None) is None:
        raise ValueError(f"this {type(model).__name__} has no parameters to train")
    if labels is not None and context is not None:
        raise ValueError("labels and context are two names of one thing: pass one of them")
    changes = (*((Flip(),) if flip else ()), *augment)
    given, name = (labels, "labels") if context is None else (context, "context")
    samples = samples_of(model, x, given, changes, name)
    objective = _objective(model, objective)
    train, held = divided(model, samples, validation, seed, changes)
    directory = _directory(run, resume)
    trainer = Trainer(
        model,
        objective,
        train,
        held,
        config,
        run=directory,
        seed=seed,
        augment=changes,
        on_validation=on_validation,
        bar=bar,
        title=title,
        clock=clock,
    )
    with nullcontext() if directory is None else directory.locked():
        if directory is not None:
            if resume:
                _resume(trainer, directory)
            _write_options(directory, config, seed)
        try:
            trainer.train()
        finally:
            if trainer.progress.step:
                _finish(trainer)
    progress = trainer.progress
    return Fitted(
        model,
        trainer.recorder.history,
        progress.best,
        progress.step,
        progress.seconds,
        None if directory is None else directory.path,
    )


def _objective(model: nn.Module, objective: Objective | None) -> Objective:
    if objective is None:
        return objective_of(model)
    if not isinstance(objective, Objective):
        raise ValueError(f"objective is an Objective, such as CrossEntropy(), got {objective!r}")
    return objective


def _config(minutes: float | None, options: dict[str, Any]) -> TrainingConfig:
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            advice = f"the nearest is {near[0]}" if near else f"allowed are {', '.join(names)}"
            raise ValueError(f"unknown option {name!r} of training: {advice}")
    for name, instead in ELSEWHERE.items():
        if name in options:
            raise ValueError(f"{name} is an option of iresflow train; in Python, {instead}")
    if options.get("precision") == "mixed":
        raise ValueError(
            "precision='mixed' is the estimator's: give the flow log_det=ReducedPrecision(...)"
        )
    if minutes is not None:
        options = {"steps": None, **options, "minutes": minutes}
    return TrainingConfig(**{**DEFAULTS, **options})


def _directory(run: str | Path | None, resume: bool) -> RunDirectory | None:
    if run is None:
        if resume:
            raise ValueError("resume=True needs run=, the directory to go on from")
        return None
    directory = RunDirectory(run)
    if not resume and directory.path.is_dir() and any(directory.path.iterdir()):
        raise RunError(
            f"{directory.path} holds something already: pass resume=True to go on from its "
            "checkpoint, or another directory"
        )
    directory.make()
    return directory


def _write_options(directory: RunDirectory, config: TrainingConfig, seed: int) -> None:
    """Not as config.yaml, which would say that ``iresflow train`` can go on with the run."""
    values = {"seed": seed, **config.to_dict()}
    directory.write_options(directory.path / OPTIONS, values)


def _resume(trainer: Trainer, directory: RunDirectory) -> None:
    file, last = directory.path / OPTIONS, directory.checkpoint("last")
    if not file.is_file():
        raise RunError(f"{directory.path} is no run of fit: {OPTIONS} is missing")
    # The file can be edited, and what the checkpoint was made with can't.
    before = read_options(file) | (options_of(last) if last.is_file() else {})
    for name, now in (("seed", trainer.seed), ("optimizer", trainer.config.optimizer)):
        if before.get(name) != now:
            raise RunError(
                f"{directory.path} was trained with {name}={before.get(name)}, not {now}"
            )
    trainer.resume()


def _finish(trainer: Trainer) -> None:
    """Puts the best weights into the model itself."""
    model = trainer.model
    best = trainer.store.weights("best")
    if best is None:
        best = trainer.average.settle(model).state_dict()
    # Eval mode first: leaving training mode would estimate norms of weights that are replaced.
    model.eval()
    model.load_state_dict(best)
    trainer.objective.make_ready(model)
