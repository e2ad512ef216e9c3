"""The training loop: steps, validation, checkpoints, and going on from them."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from typing import Any, final

from torch import Tensor, nn
from tqdm import tqdm

from iresflow.ambient import full_precision
from iresflow.data.images.augment import Augmentation
from iresflow.errors import NonFiniteError, RunError, TrainingInterrupted
from iresflow.training.checkpoint import Files, Memory, Progress, Store, find_training
from iresflow.training.config import TrainingConfig
from iresflow.training.loop.average import WeightAverage
from iresflow.training.loop.batches import Batch, Batches, Samples
from iresflow.training.loop.guard import Guard, Step, guard_for
from iresflow.training.loop.inputs import require_good_data
from iresflow.training.loop.interrupt import deferred_interrupt
from iresflow.training.loop.optimizers import Schedule, new_optimizer
from iresflow.training.loop.processes import Alone, Processes
from iresflow.training.loop.progress import new_bar
from iresflow.training.loop.step import StepFunction, own_shares
from iresflow.training.objectives.base import Objective, OnValidation, Ready, Score
from iresflow.training.runs.directory import RunDirectory
from iresflow.training.runs.recorder import Page, Recorder
from iresflow.training.runs.state import TrainingState

__all__ = ["Trainer"]

ECHO = 2.0
"""Seconds in which a launcher passes on a signal that its processes have had already."""


@final
class Trainer:
    """Trains a model by an objective, from its first step or from a checkpoint's.

    All randomness is a function of seed and step, and what is validated is the averaged model,
    which no step reads: neither an interruption nor a checkpoint changes the weights that come
    out. Nor do processes and parts that a batch is split in, but for the rounding of sums. (A
    model that draws from torch's global stream, as dropout does, is the exception.)

    Arguments:
        model: A model on its device, which is trained in place.
        objective: What is minimised.
        train: The samples to train on.
        validation: Those to choose the best model by; None for none.
        config: The options of training.
        run: Where to write; None for memory alone.
        seed: Of all random streams.
        augment: The random changes of each training sample, one after another.
        processes: Those that train this model, each with a trainer of its own.
        guard: What keeps bad steps out of the weights; None for what suits the device.
        on_validation: Called after each validation, in the main process.
        bar: Whether the main process shows a progress bar, in a terminal or notebook.
        title: Of that bar.
        say: Told a line of each validation, in the main process.
        clock: Seconds by which minutes are counted, such as ``time.process_time``.

    Raises:
        ValueError: there are fewer samples in a batch than parts it is to be split in.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train: Samples,
        validation: Samples | None,
        config: TrainingConfig,
        *,
        run: RunDirectory | None = None,
        seed: int = 0,
        augment: tuple[Augmentation, ...] = (),
        processes: Processes | None = None,
        guard: Guard | None = None,
        on_validation: OnValidation | None = None,
        bar: bool = True,
        title: str | None = None,
        say: Callable[[str], object] = lambda line: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.processes = processes or Alone()
        self.model, self.objective, self.config = model, objective, config
        self.split, self.seed, self.run = train, seed, run
        self.device = next(model.parameters()).device
        self.own = objective.own.to(self.device)
        self.batches = Batches(train, config.batch_size, seed, self.device, augment)
        shares = own_shares(self.batches.count, config.accumulate, self.processes)
        count = slice(config.validation_samples)
        self.held = None if validation is None else Batch.of(validation, count)
        self.optimizer = new_optimizer([*model.parameters(), *self.own.parameters()], config)
        self.average = WeightAverage(model, config.ema_decay)
        self.state = TrainingState(model, self.average, self.optimizer, self.own)
        guard = guard or guard_for(self.device)
        self.steps = StepFunction(
            model, objective, self.optimizer, guard, config, shares, self.processes, seed
        )
        self.schedule, self.progress = Schedule(config), Progress()
        self.store: Store = Memory() if run is None else Files(run)
        self.recorder = Recorder(objective.unit(model))
        self.on_validation, self.bar, self.title, self.say = on_validation, bar, title, say
        self._now = clock
        self._elapsed, self._interrupted, self._ended = 0.0, False, False
        self._validated, self._unwritten = False, None

    def resume(self) -> None:
        """Takes up the run's last checkpoint; a run that was killed before it had one begins anew.

        Raises:
            CheckpointError: a checkpoint is damaged or missing.
            RunError: it is of another model, objective or optimiser.
        """
        assert (run := self.run) is not None
        found = self.processes.on_main(lambda: find_training(run))
        if found is None:
            return
        state, self.progress = found
        try:
            self.state.load_state_dict(state)
        except ValueError as error:
            raise RunError(f"{run.path} is of another model or objective: {error}") from None
        self._validated, self._unwritten = state.get("validated", False), state.get("recorder")

    def train(self) -> None:
        """Runs to the configured number of steps, or minutes, or until no validation is better.

        Raises:
            NonFiniteError: a loss or gradient is not finite; weights and last checkpoint are
                those before it.
            CheckpointError: a checkpoint can't be written; the previous one is intact.
            TrainingInterrupted: on Ctrl-C or SIGTERM, after a step and with a checkpoint.
            LostProcessError: another process has ended.
            RunError: processes hold different data.
            ValueError: the data holds NaN or infinity.
        """
        start, main = self.progress.step, self.processes.main
        self._start_alike()
        self.model.train()
        self.own.train()
        self._elapsed, self._interrupted, self._ended = self.progress.seconds, False, False
        unit, shown = self.objective.unit(self.model), self.objective.shown
        self.recorder = Recorder(unit, self.run if main else None, start, shown)
        if self._unwritten is not None:
            self.recorder.load_state_dict(self._unwritten, self.device)
        wanted, total = main and self.bar, self.config.steps
        bar = new_bar("step", total, wanted=wanted, initial=start, title=self.title)
        echo = ECHO if self.processes.count > 1 else 0.0
        with bar, closing(self.recorder), deferred_interrupt(echo) as interrupted:
            self._run(bar, interrupted)
            if not self._validated:
                self.validate()
            if any(self.processes.gather(interrupted.is_set())):
                raise TrainingInterrupted

    def _run(self, bar: tqdm, interrupted: threading.Event) -> None:
        """Takes steps until the end."""
        batches = self._next_batches()
        while not self._done():
            if self._interrupted:
                self._settle()
                self.processes.on_main(lambda: self._save(self._ready()[1].stored))
                raise TrainingInterrupted
            began, step = self._now(), self.progress.step
            rate, before = self.schedule.rate(step, self._elapsed), self._position()
            votes = partial(self._votes, interrupted, began)
            numbers, known = self.steps.take(step, next(batches), rate, votes)
            self._note(known)
            self.average.update(self.model, step)
            self.progress.step += 1
            seconds = self._now() - began
            self.progress.seconds += seconds
            self.recorder.count(numbers, seconds)
            bar.update()
            if self.progress.step % self.config.log_every == 0:
                self._settle()
                words = self.recorder.log(self.progress.step, self.steps.names, rate)
                bar.set_postfix_str(words)
            self._validated = False
            if self.schedule.validates(self.progress.step, before, self._position()):
                self.validate()

    def _next_batches(self) -> Iterator[Batch]:
        """This process' rows of the batches to come, each of the size that the schedule says."""
        while True:
            size = self._batch_size()
            batches = replace(self.batches, size=size)
            shares = own_shares(batches.count, self.config.accumulate, self.processes)
            self.steps.shares = shares
            rows = slice(shares[0].first, shares[-1].rows.stop)
            for batch in batches.from_step(self.progress.step, rows):
                yield batch
                if self._batch_size() != size:
                    break

    def _batch_size(self) -> int:
        return self.schedule.batch_size(self.progress.step, self._elapsed)

    def _votes(self, interrupted: threading.Event, began: float) -> tuple[float, float]:
        """Whether this process has been interrupted, and the seconds of the main one so far."""
        seconds = self.progress.seconds + self._now() - began
        return float(interrupted.is_set()), seconds if self.processes.main else 0.0

    def validate(self) -> None:
        """Scores the averaged model, writes checkpoints and pictures, and logs: in one process."""
        self._settle()
        # They are equal, but for what a GPU may round differently: all go on from what is saved.
        self.processes.copy_from_main(self._tensors(self.model, self.own))

        def work() -> tuple[float, int, bool]:
            ended = self._validate()
            return self.progress.best, self.progress.stale, ended

        self.progress.best, self.progress.stale, self._ended = self.processes.on_main(work)
        self._validated = True

    @full_precision()
    def _validate(self) -> bool:
        """Returns whether the hook asks for the end."""
        model, ready = self._ready()
        step = self.progress.step
        if not ready.usable:
            raise NonFiniteError(self._advice("the averaged weights can't be certified", step))
        score = self._score(model)
        # The best first: killed in between, the run would otherwise believe in one it lacks.
        better = score is not None and score.value < self.progress.best
        if score is not None and better:
            self.progress.best, self.progress.stale = score.value, 0
            self.store.keep("best", {**ready.stored, "progress": asdict(self.progress)})
        elif score is not None:
            self.progress.stale += 1
        try:
            if score is not None:
                words = self.recorder.validation(step, score.value, score.logged, ready.logged)
                self.say(f"{words}{', the best so far' if better else ''}")
            if self.run is not None:
                split = self.split if self.held is None else self.held
                self.objective.illustrate(model, split, Page(self.recorder, step))
        finally:
            # After all that is written of the step: a resumed run writes again what comes later.
            self._save(ready.stored, validated=True)
        return bool(self.on_validation and self.on_validation(step, model, score))

    def _score(self, model: nn.Module) -> Score | None:
        if self.held is None:
            return None
        self.own.eval()
        step = self.progress.step
        try:
            score = self.objective.evaluate(model, self.held)
        except NonFiniteError:
            raise NonFiniteError(self._advice("the validation score is nan", step)) from None
        finally:
            self.own.train()
        if not math.isfinite(score.value):
            raise NonFiniteError(self._advice(f"the validation score is {score.value}", step))
        return score

    def _ready(self) -> tuple[nn.Module, Ready]:
        """The averaged model in eval mode, and what is known of it."""
        model = self.average.settle(self.model)
        return model, self.objective.make_ready(model)

    def _save(self, stored: Mapping[str, Any], *, validated: bool = False) -> None:
        """Keeps the last checkpoint: what is stored of the model, and all to go on from."""
        state = {**self.state.state_dict(), "recorder": self.recorder.state_dict()}
        state["validated"] = validated
        content = {**stored, "progress": asdict(self.progress), "training": state}
        self.store.keep("last", content)

    def _position(self) -> float:
        return self.schedule.progress(self.progress.step, self._elapsed)

    def _done(self) -> bool:
        patience = self.config.patience
        stale = patience is not None and self.progress.stale >= patience
        return self._ended or stale or self._position() >= 1

    def _settle(self) -> None:
        """Waits for the steps that the device still computes."""
        self._note(self.steps.guard.settle())

    def _note(self, known: list[Step]) -> None:
        for step in known:
            if step.fault is not None:
                raise NonFiniteError(self._advice(step.fault, step.number))
            self._interrupted |= step.interrupted
            self._elapsed = step.seconds

    def _start_alike(self) -> None:
        """Initialises a new model, and makes sure that all processes have the same."""
        require_good_data(self.split, self.processes)
        if self.progress.step == 0:
            # Of what was passed in: whoever resumes may have another model of the same kind.
            self.processes.on_main(lambda: self._save({}))
            self.objective.initialize(self.model, self.batches.unchanged, self.seed)
            self.average.model.load_state_dict(self.model.state_dict())
        self.processes.copy_from_main(self._tensors(self.model, self.average.model, self.own))

    @staticmethod
    def _tensors(*modules: nn.Module) -> list[Tensor]:
        return [t for module in modules for t in (*module.parameters(), *module.buffers())]

    def _advice(self, what: str, step: int) -> str:
        return (
            f"{what} at step {step}; {self.store.last}. Try a smaller learning rate, a longer "
            f"warm-up, or a smaller clip_norm{self.objective.remedy(self.model)}; if it happens "
            "in the first steps, check the data"
        )
