"""The training loop: steps, validation, checkpoints, and going on from them."""

import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Adam, Adamax, Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from iresflow.data import Dataset, Split
from iresflow.errors import NonFiniteError, TrainingInterrupted
from iresflow.models import Certificate, ImageFlow, VectorFlow
from iresflow.tensors import full_precision, reduced_precision
from iresflow.training.batches import Batches, Share, random_stream
from iresflow.training.build import class_context
from iresflow.training.checkpoint import Progress, load_training, save_checkpoint
from iresflow.training.config import TrainingConfig
from iresflow.training.evaluation import Evaluation, Precision
from iresflow.training.guard import Guard, Step, guard_for, put_back
from iresflow.training.interrupt import deferred_interrupt
from iresflow.training.objectives import evaluate_objective, unit_of
from iresflow.training.processes import Alone, Processes
from iresflow.training.recorder import Recorder, Silent
from iresflow.training.runs import RunDirectory
from iresflow.training.score import evaluate

__all__ = ["Trainer", "Validation", "learning_rate", "own_shares"]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    # The second moment of the Residual Flow code; Adamax keeps its paper's.
    "adam": partial(Adam, betas=(0.9, 0.99), fused=True),
    "adamax": Adamax,
}

PRECISIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "float32": full_precision,
    "mixed": full_precision,  # the narrow type is the estimator's
    "tf32": reduced_precision,
}

ECHO = 2.0
"""Seconds in which a launcher passes on a signal that its processes have had already."""

INITIALIZATION_ENTRIES = 2_000_000
"""Entries of the data from which ActNorm is initialised, about: more than a batch, so that a batch
of one trains; and all rows of a table but a very large one, since a column may be mostly zeros."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step (the first is 0): a linear rise, constant, a linear fall."""
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    fall = (config.steps - step) / config.decay_steps if config.decay_steps else 1.0
    return config.learning_rate * min(1.0, rise, max(0.0, fall))


def own_shares(config: TrainingConfig, samples: int, processes: Processes) -> list[Share]:
    """What one process computes of each batch, one after another.

    Arguments:
        config: The options of training.
        samples: In the training split; a batch has so many at most.
        processes: Those that share a batch.

    Raises:
        ValueError: a batch has fewer samples than there are shares.
    """
    parts = processes.count * config.accumulate
    shares = Share.split(min(config.batch_size, samples), parts)
    return shares[processes.rank * config.accumulate :][: config.accumulate]


@final
@dataclass(frozen=True)
class Validation:
    """The averaged model's score on the validation split, and its certificate."""

    score: Evaluation
    certificate: Certificate


@final
class Trainer:
    """Trains a flow, from its first step or from a checkpoint's.

    All randomness is a function of seed and step, and what is validated is the averaged model,
    which no step reads: neither an interruption nor a checkpoint changes the weights that come
    out. Nor do processes and parts that a batch is split in, but for the rounding of sums.

    Arguments:
        flow: A new model, on its device.
        dataset: Its data.
        config: The options of training.
        run: Where to write.
        seed: Of all random streams.
        flip: Whether training images are mirrored at random.
        processes: Those that train this flow, each with a trainer of its own.
        guard: What keeps bad steps out of the weights; None for what suits the device.

    Raises:
        ValueError: there are fewer samples in a batch than parts it is to be split in.
    """

    def __init__(
        self,
        flow: ImageFlow | VectorFlow,
        dataset: Dataset,
        config: TrainingConfig,
        run: RunDirectory,
        *,
        seed: int = 0,
        flip: bool = False,
        processes: Processes | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.processes = processes or Alone()
        self.shares = own_shares(config, len(dataset.train), self.processes)
        self.flow, self.dataset, self.config, self.run = flow, dataset, config, run
        self.seed = seed
        self.device = next(flow.parameters()).device
        self.batches = Batches(dataset.train, config.batch_size, seed, self.device, flip)
        self.progress = Progress()
        optimizer = OPTIMIZERS[config.optimizer]
        self.optimizer = optimizer(flow.parameters(), lr=config.learning_rate)
        self.average = AveragedModel(flow)
        self.guard = guard or guard_for(self.device)
        self._interrupted = self._late = False

    @property
    def evaluated(self) -> ImageFlow | VectorFlow:
        """The averaged model, in eval mode, its certified norms enforced."""
        model = self.average.module
        torch._foreach_copy_(list(model.buffers()), list(self.flow.buffers()))
        model.eval()
        model.enforce()
        return model

    def resume(self) -> None:
        """Takes up the state of the run's last checkpoint. Errors: `load_training`."""
        checkpoint = self.run.checkpoint("last")
        state, self.progress = self.processes.on_main(lambda: load_training(checkpoint))
        self.flow.load_state_dict(state["flow"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.processes.on_main(lambda: self.run.forget_metrics_after(self.progress.step))

    def train(self) -> None:
        """Runs to the configured number of steps, or minutes.

        Raises:
            NonFiniteError: a loss or gradient is not finite; weights and last checkpoint are
                those before it.
            CheckpointError: a checkpoint can't be written; the previous one is intact.
            TrainingInterrupted: on Ctrl-C or SIGTERM, behind a step and with a checkpoint.
            LostProcessError: another process has ended.
            RunError: processes hold different data.
            ValueError: the data holds NaN or infinity.
        """
        start, main = self.progress.step, self.processes.main
        self._start_alike()
        self.flow.train()
        rows = slice(self.shares[0].first, self.shares[-1].rows.stop)
        batches = self.batches.from_step(start, rows)
        bar = tqdm(
            total=self.config.steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not main,
        )
        recorder = Recorder(self.run, unit_of(self.flow), start) if main else Silent()
        echo = ECHO if self.processes.count > 1 else 0.0
        with bar, recorder, deferred_interrupt(echo) as interrupted:
            self._run(batches, recorder, bar, interrupted)
            if self.progress.step % self.config.validate_every or self.progress.step == start:
                self.validate(recorder)
            if any(self.processes.gather(interrupted.is_set())):
                raise TrainingInterrupted

    def validate(self, recorder: Recorder | Silent) -> Validation:
        """Scores the averaged model, writes checkpoints and pictures, and logs: in one process."""
        self._settle()
        # They are equal, but for what a GPU may round differently: all go on from what is saved.
        self.processes.copy_from_main([*self.flow.parameters(), *self.flow.buffers()])

        def work() -> tuple[Validation, float]:
            assert isinstance(recorder, Recorder)
            return self._validate(recorder), self.progress.best

        result, self.progress.best = self.processes.on_main(work)
        return result

    def _run(
        self,
        batches: Iterator[tuple[Tensor, Tensor | None]],
        recorder: Recorder | Silent,
        bar: tqdm,
        interrupted: threading.Event,
    ) -> None:
        self._interrupted, self._late = False, self._out_of_time(0.0)
        while self.progress.step < self.config.steps and not self._late:
            if self._interrupted:
                self._settle()
                self.processes.on_main(lambda: self._save(self.evaluated))
                raise TrainingInterrupted
            began = time.perf_counter()
            numbers = self._step(*next(batches), began, interrupted)
            self.progress.step += 1
            seconds = time.perf_counter() - began
            self.progress.seconds += seconds
            recorder.count(numbers, seconds)
            bar.update()
            if self.progress.step % self.config.log_every == 0:
                self._settle()
                rate = self.optimizer.param_groups[0]["lr"]
                bar.set_postfix_str(recorder.log(self.progress.step, rate))
            if self.progress.step % self.config.validate_every == 0:
                self.validate(recorder)

    @full_precision()
    def _validate(self, recorder: Recorder) -> Validation:
        model = self.evaluated
        certificate = model.certify()
        held = self.dataset.validation
        count = min(len(held), self.config.validation_samples)
        split = Split(held.values[:count], _first(held.labels, count))
        step = self.progress.step
        try:
            score = evaluate(model, split, precision=Precision(repeated=0))
        except NonFiniteError:
            raise NonFiniteError(self._advice("the validation score is nan", step)) from None
        if not (math.isfinite(score.mean) and certificate):
            raise NonFiniteError(self._advice(f"the validation score is {score.mean}", step))
        # The best first: killed in between, the run would otherwise believe in one it lacks.
        if score.mean < self.progress.best:
            self.progress.best = score.mean
            save_checkpoint(self.run.checkpoint("best"), model, certificate, self.progress)
        self._save(model)
        recorder.validation(step, score, certificate.largest)
        recorder.pictures(step, model, held)
        return Validation(score, certificate)

    def _step(
        self,
        values: Tensor,
        labels: Tensor | None,
        began: float,
        interrupted: threading.Event,
    ) -> Tensor:
        """One optimiser step; returns the numbers of a `Step`, on the device."""
        step = self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        with PRECISIONS[self.config.precision]():
            parts = self._gradients(values, labels)
            late = self.processes.main and self._out_of_time(time.perf_counter() - began)
            # Filled on the device: a copy from the host would be waited for.
            votes = [parts.new_full((1,), float(vote)) for vote in (interrupted.is_set(), late)]
            summed = self._sum_over_processes(torch.cat([parts, *votes]))
            limit = self.config.clip_norm or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), limit)
        numbers = torch.cat([summed, norm.detach().to(summed).view(1)])
        self._note(self.guard.admit(step, numbers, self.optimizer))
        self.optimizer.step()
        self._update_average(step)
        return numbers

    def _gradients(self, values: Tensor, labels: Tensor | None) -> Tensor:
        """Adds up the gradients of this process' shares; returns what the loss consists of."""
        step, own = self.progress.step, self.shares[0].first
        like = next(self.flow.parameters())
        # Each share is normalised by the same norms, from where the last step left the iteration.
        buffers = [b for b in self.flow.buffers() if b.is_floating_point()]
        before = [b.clone() for b in buffers] if len(self.shares) > 1 else []
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for share in self.shares:
            rows = slice(share.first - own, share.first - own + share.size)
            context = class_context(_rows(labels, rows), self.flow.context_dim, like)
            stream = share.stream(random_stream(self.seed, step, 2, self.device))
            if share is not self.shares[0]:
                torch._foreach_copy_(buffers, before)
            objective = evaluate_objective(self.flow, values[rows], context, stream)
            parts = torch.stack([objective.loss, objective.log_base, objective.log_det])
            (objective.loss * share.weight).backward()
            parts = parts.detach() * share.weight
            total = parts if share is self.shares[0] else total + parts
        return total

    def _sum_over_processes(self, numbers: Tensor) -> Tensor:
        """Sums the gradients and some numbers over the processes, in one message."""
        if self.processes.count == 1:
            return numbers
        tensors = [p.grad for p in self.flow.parameters() if p.grad is not None]
        flat = torch.cat([*(t.reshape(-1) for t in tensors), numbers])
        self.processes.add(flat)
        put_back([*tensors, numbers], flat)
        return numbers

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """An exponential average whose decay grows with the steps, so that it forgets the start.

        As `AveragedModel` would do it, but for its counter, which is read from the device.
        """
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        average = [p.detach() for p in self.average.module.parameters()]
        current = [p.detach() for p in self.flow.parameters()]
        torch._foreach_lerp_(average, current, 1 - decay if step else 1.0)
        self.average.n_averaged += 1

    def _settle(self) -> None:
        """Waits for the steps that the device still computes."""
        self._note(self.guard.settle())

    def _note(self, known: list[Step]) -> None:
        for step in known:
            if not math.isfinite(step.loss):
                raise NonFiniteError(self._advice(f"the loss is {step.loss}", step.number))
            if not step.finite:
                what = f"the gradient's norm is {step.norm}"
                raise NonFiniteError(self._advice(what, step.number))
            self._interrupted |= step.interrupted
            self._late |= step.out_of_time

    def _start_alike(self) -> None:
        """Initialises a new model, and makes sure that all processes have the same."""
        data = self.dataset.train.values
        if data.is_floating_point() and not bool(data.isfinite().all()):
            raise ValueError("the training data holds NaN or infinity")
        if self.processes.count > 1:
            digest = zlib.crc32(data.contiguous().numpy())
            self.processes.require_same(digest, "the training data")
        if self.progress.step == 0:
            self._initialize()
        for model in (self.flow, self.average.module):
            self.processes.copy_from_main([*model.parameters(), *model.buffers()])

    def _initialize(self) -> None:
        train = self.dataset.train
        stream = random_stream(self.seed, 0, 3, torch.device("cpu"))
        count = max(16, INITIALIZATION_ENTRIES // train.values[0].numel())
        if isinstance(self.flow, ImageFlow):
            count = min(count, 512)  # each has many pixels, and their activations take memory
        index = torch.randperm(len(train), generator=stream)[:count]
        x = train.values[index].to(self.device)
        labels = None if train.labels is None else train.labels[index]
        like = next(self.flow.parameters())
        if isinstance(self.flow, ImageFlow):
            x = self.flow.dequantize(x, random_stream(self.seed, 0, 4, self.device))
        self.flow.initialize(x, class_context(labels, self.flow.context_dim, like))
        self.average.module.load_state_dict(self.flow.state_dict())

    def _save(self, model: ImageFlow | VectorFlow) -> None:
        state: dict[str, Any] = {
            "flow": self.flow.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        path = self.run.checkpoint("last")
        save_checkpoint(path, model, model.certify(), self.progress, state)

    def _out_of_time(self, seconds: float) -> bool:
        """Whether the time will be up in so many seconds of training."""
        minutes = self.config.minutes
        return minutes is not None and self.progress.seconds + seconds >= 60 * minutes

    def _advice(self, what: str, step: int) -> str:
        last: Path = self.run.checkpoint("last")
        kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint yet"
        return (
            f"{what} at step {step}; {kept}. Try a smaller learning rate, a longer "
            "warm-up, or a smaller clip_norm; if it happens in the first steps, check the data"
        )


def _first(labels: Tensor | None, count: int) -> Tensor | None:
    return _rows(labels, slice(count))


def _rows(labels: Tensor | None, rows: slice) -> Tensor | None:
    return None if labels is None else labels[rows]
