"""The training loop: steps, validation, checkpoints, and going on from them."""

import math
import time
from collections.abc import Callable
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
from iresflow.training.build import Batches, class_context, random_stream
from iresflow.training.checkpoint import Progress, load_training, save_checkpoint
from iresflow.training.config import TrainingConfig
from iresflow.training.evaluation import Evaluation, Precision
from iresflow.training.interrupt import deferred_interrupt
from iresflow.training.objectives import Objective, evaluate_objective, unit_of
from iresflow.training.recorder import Recorder
from iresflow.training.runs import RunDirectory
from iresflow.training.score import evaluate

__all__ = ["Trainer", "Validation", "learning_rate"]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    # The second moment of the Residual Flow code; Adamax keeps its paper's.
    "adam": partial(Adam, betas=(0.9, 0.99)),
    "adamax": Adamax,
}

INITIALIZATION_ENTRIES = 2_000_000
"""Entries of the data from which ActNorm is initialised, about: more than a batch, so that a batch
of one trains; and all rows of a table but a very large one, since a column may be mostly zeros."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step (the first is 0): a linear rise, constant, a linear fall."""
    rise = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    fall = (config.steps - step) / config.decay_steps if config.decay_steps else 1.0
    return config.learning_rate * min(1.0, rise, max(0.0, fall))


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
    out.

    Arguments:
        flow: A new model, on its device.
        dataset: Its data.
        config: The options of training.
        run: Where to write.
        seed: Of all random streams.
        flip: Whether training images are mirrored at random.
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
    ) -> None:
        self.flow, self.dataset, self.config, self.run = flow, dataset, config, run
        self.seed = seed
        self.device = next(flow.parameters()).device
        self.batches = Batches(dataset.train, config.batch_size, seed, self.device, flip)
        self.progress = Progress()
        optimizer = OPTIMIZERS[config.optimizer]
        self.optimizer = optimizer(flow.parameters(), lr=config.learning_rate)
        self.average = AveragedModel(flow, multi_avg_fn=_average(config.ema_decay))

    @property
    def evaluated(self) -> ImageFlow | VectorFlow:
        """The averaged model, in eval mode, its certified norms enforced."""
        model = self.average.module.eval()
        model.enforce()
        return model

    def resume(self) -> None:
        """Takes up the state of the run's last checkpoint. Errors: `load_training`."""
        state, self.progress = load_training(self.run.checkpoint("last"))
        self.flow.load_state_dict(state["flow"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.run.forget_metrics_after(self.progress.step)

    def train(self) -> None:
        """Runs to the configured number of steps, or minutes.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the last checkpoint is intact.
            CheckpointError: a checkpoint can't be written; the previous one is intact.
            TrainingInterrupted: on Ctrl-C or SIGTERM, behind a step and with a checkpoint.
        """
        start = self.progress.step
        if start == 0:
            self._initialize()
        self.flow.train()
        batches = self.batches.from_step(start)
        bar = tqdm(total=self.config.steps, initial=start, unit="step", dynamic_ncols=True)
        with bar, Recorder(self.run, unit_of(self.flow), start) as recorder:
            with deferred_interrupt() as interrupted:
                while self.progress.step < self.config.steps and not self._out_of_time():
                    if interrupted.is_set():
                        self._save(self.evaluated)
                        raise TrainingInterrupted
                    began = time.perf_counter()
                    objective, norm = self._step(*next(batches))
                    self.progress.step += 1
                    seconds = time.perf_counter() - began
                    self.progress.seconds += seconds
                    recorder.count(objective, norm, seconds)
                    bar.update()
                    if self.progress.step % self.config.log_every == 0:
                        rate = self.optimizer.param_groups[0]["lr"]
                        bar.set_postfix_str(recorder.log(self.progress.step, rate))
                    if self.progress.step % self.config.validate_every == 0:
                        self.validate(recorder)
                if self.progress.step % self.config.validate_every or self.progress.step == start:
                    self.validate(recorder)
                if interrupted.is_set():
                    raise TrainingInterrupted

    def validate(self, recorder: Recorder) -> Validation:
        """Scores the averaged model, writes checkpoints and pictures, and logs."""
        model = self.evaluated
        certificate = model.certify()
        held = self.dataset.validation
        count = min(len(held), self.config.validation_samples)
        split = Split(held.values[:count], _first(held.labels, count))
        try:
            score = evaluate(model, split, precision=Precision(repeated=0))
        except NonFiniteError:
            raise NonFiniteError(self._advice("the validation score is nan")) from None
        if not (math.isfinite(score.mean) and certificate):
            raise NonFiniteError(self._advice(f"the validation score is {score.mean}"))
        # The best first: killed in between, the run would otherwise believe in one it lacks.
        if score.mean < self.progress.best:
            self.progress.best = score.mean
            save_checkpoint(self.run.checkpoint("best"), model, certificate, self.progress)
        self._save(model)
        recorder.validation(self.progress.step, score, certificate.largest)
        recorder.pictures(self.progress.step, model, held)
        return Validation(score, certificate)

    def _step(self, values: Tensor, labels: Tensor | None) -> tuple[Objective, Tensor]:
        step = self.progress.step
        rate = learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        like = next(self.flow.parameters())
        context = class_context(labels, self.flow.context_dim, like)
        stream = random_stream(self.seed, step, 2, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        objective = evaluate_objective(self.flow, values, context, stream)
        if not bool(torch.isfinite(objective.loss)):
            raise NonFiniteError(self._advice(f"the loss is {float(objective.loss.detach())}"))
        objective.loss.backward()
        limit = self.config.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), limit)
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(self._advice(f"the gradient's norm is {float(norm)}"))
        self.optimizer.step()
        self.average.update_parameters(self.flow)
        return objective, norm

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

    def _out_of_time(self) -> bool:
        minutes = self.config.minutes
        return minutes is not None and self.progress.seconds >= 60 * minutes

    def _advice(self, what: str) -> str:
        last: Path = self.run.checkpoint("last")
        kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint yet"
        return (
            f"{what} at step {self.progress.step}; {kept}. Try a smaller learning rate, a longer "
            "warm-up, or a smaller clip_norm; if it happens in the first steps, check the data"
        )


def _average(decay: float) -> Any:  # noqa: ANN401 (the type that AveragedModel takes)
    """An exponential average whose decay grows with the steps, so that it forgets the start."""

    @torch.no_grad()
    def update(average: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        steps = float(count)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return update


def _first(labels: Tensor | None, count: int) -> Tensor | None:
    return None if labels is None else labels[:count]
