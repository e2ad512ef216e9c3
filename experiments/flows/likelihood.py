"""Maximum likelihood for the densities of any package, by the package's own loop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from benchmarks.peers import Density
from iresflow import Flow, fit
from iresflow.bijections import dequantize
from iresflow.data import Dataset, Split
from iresflow.errors import NonFiniteError
from iresflow.streams import Stream
from iresflow.training.config import OptimizerName
from iresflow.training.fitting import Fitted
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Score, Terms
from iresflow.training.objectives.likelihood import MaximumLikelihood

__all__ = ["AnyLikelihood", "Trained", "Trials", "losses_of", "train_best", "train_density"]

SCORED = 500
"""Samples that are scored at a time."""

FIRST = 500
"""Samples that a model is initialised from."""


@final
@dataclass(frozen=True)
class AnyLikelihood(Objective):
    """Minus the mean log-likelihood of a `Density`.

    Arguments:
        levels: Grey levels of integer images, which are dequantised and scored in bits/dim; None
            for vectors, in nats.
    """

    levels: int | None

    def unit(self, model: nn.Module) -> str:
        return "nats" if self.levels is None else "bits/dim"

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        return Terms(self._losses(model, batch.values, stream).mean())

    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        losses = self.losses(model, split.values)
        return Score(float(losses.mean()))

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        assert isinstance(model, Density)
        with torch.no_grad():
            model.initialize(self._floats(split.values[:FIRST], _stream(seed)))

    @torch.no_grad()
    def losses(self, model: nn.Module, values: Tensor) -> Tensor:
        """The loss of each sample, ``(N,)``, with one draw of noise."""
        stream = _stream(0)
        return torch.cat([self._losses(model, part, stream) for part in values.split(SCORED)])

    def _losses(self, model: nn.Module, values: Tensor, stream: Stream) -> Tensor:
        assert isinstance(model, Density)
        nats = -model.log_prob(self._floats(values, stream))
        if self.levels is None:
            return nats
        return math.log2(self.levels) + nats / (values[0].numel() * math.log(2))

    def _floats(self, values: Tensor, stream: Stream) -> Tensor:
        if self.levels is None:
            return values
        dtype = torch.get_default_dtype()
        return dequantize(values, self.levels, dtype=dtype, generator=stream)


def train_density(
    model: Flow | Density,
    data: Dataset,
    where: Path | None,
    *,
    minutes: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    validate_every: float = 0.25,
    **options: Any,  # noqa: ANN401 (what `fit` takes)
) -> Fitted:
    """Trains a model for some minutes of processor time, or goes on with it in a directory.

    The protocol is that of our configurations for all of them: gradients clipped, averaged
    weights, the learning rate falling over the last third; validation chooses the weights. Further
    options, such as the optimiser, are those of `iresflow.fit`.
    """
    known = where is not None and (where / "fit.yaml").is_file()
    own = isinstance(model, Flow)
    return fit(
        model,
        data.train.values,
        validation=(data.validation.values, None),
        objective=MaximumLikelihood() if own else AnyLikelihood(data.levels),
        minutes=minutes,
        clock=time.process_time,
        run=where,
        resume=known,
        seed=seed,
        title=None if where is None else where.name,
        batch_size=batch_size,
        learning_rate=learning_rate,
        validate_every=validate_every,
        **options,
    )


class Trials(Protocol):
    """What trainings of one model are tried, of an experiment's settings."""

    seed: int
    """Of weights, batches and noise."""
    minutes: float
    """Of processor time, for each."""
    rates: tuple[float, ...]
    """Learning rates."""
    optimizers: tuple[OptimizerName, ...]
    """Each at each rate."""


@final
@dataclass(frozen=True)
class Trained:
    """A model and how it was trained."""

    model: Flow | Density
    fitted: Fitted
    rate: float
    optimizer: OptimizerName


def train_best(
    name: str,
    make: Callable[[], Flow | Density],
    data: Dataset,
    where: Path,
    trials: Trials,
    batch_size: int,
) -> Trained | None:
    """The best of some trainings by validation; None if all ended in values that are not finite.

    Each has a directory in ``where``.
    """
    best: Trained | None = None
    for rate, optimizer in product(trials.rates, trials.optimizers):
        trial = f"{name}, {optimizer}, rate {rate:g}"
        torch.manual_seed(trials.seed)
        model = make()
        try:
            fitted = train_density(
                model,
                data,
                where / trial.replace(", ", "-").replace(" ", "-"),
                minutes=trials.minutes,
                batch_size=batch_size,
                learning_rate=rate,
                seed=trials.seed,
                optimizer=optimizer,
            )
        except NonFiniteError as error:
            print(f"{trial}: {error}", flush=True)
            continue
        print(f"{trial}: validation {fitted.best:.4f}", flush=True)
        if best is None or fitted.best < best.fitted.best:
            best = Trained(model, fitted, rate, optimizer)
    return best


def losses_of(model: Flow | Density, data: Dataset, split: Split, seed: int = 0) -> Tensor:
    """Bits/dim of images, or nats of vectors, of each sample, ``(N,)``."""
    if not isinstance(model, Flow):
        return AnyLikelihood(data.levels).losses(model, split.values)
    if data.levels is not None:
        return model.bits_per_dim(split.values, seed=seed).values
    return -model.likelihood(split.values, seed=seed).log_prob


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
