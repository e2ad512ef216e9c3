"""What the training of a `LearnedOperator` minimises: the error of F, or that of its inverse."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from iresflow.bijections import Accuracy
from iresflow.errors import NonFiniteError
from iresflow.inverse_problems.learned import LearnedOperator
from iresflow.inverse_problems.penalties import Penalty
from iresflow.inverse_problems.self_adjoint import SelfAdjoint
from iresflow.streams import KeyedStream, Stream
from iresflow.tensors import sum_per_sample, widest
from iresflow.training.fitting import objective_of
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Objective, Ready, Score, Terms
from iresflow.training.objectives.certified import certified_ready, initialize_once

__all__ = ["Approximation", "Reconstruction"]

EVALUATED = 100
"""Samples that are evaluated at a time."""

INITIALIZATION_SAMPLES = 2000
"""Samples of which the root mean square is taken, at most."""


class _OperatorObjective(Objective):
    """The mean over samples of squared errors, relative to the data's mean square."""

    @abstractmethod
    def squared_errors(self, net: LearnedOperator, batch: Batch, stream: Stream) -> Tensor:
        """``(B,)``, summed over the entries, in squared units of the data."""

    @final
    def unit(self, model: nn.Module) -> str:
        return "relative_squared_error"

    @final
    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        net = _operator_of(model)
        return Terms(_relative(net, self.squared_errors(net, batch, stream)).mean())

    @final
    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        net, parts = _operator_of(model), []
        for first in range(0, len(split), EVALUATED):
            batch = _floats(net, Batch.of(split, slice(first, first + EVALUATED)))
            wide = batch.values.to(widest(batch.values.device))
            errors = self.squared_errors(net, batch, KeyedStream.of_samples(0, wide))
            parts.append(_relative(net, errors).double())
        losses = torch.cat(parts)
        if bool(losses.isnan().any()):
            raise NonFiniteError("the model gives NaN")
        error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
        return Score(float(losses.mean()), {"standard_error": error})

    @final
    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        """Sets the unit from random samples, unless the model has seen data before.

        Raises:
            ValueError: data of another shape, or nothing to compare with.
        """
        net = _operator_of(model)

        def start(batch: Batch) -> None:
            batch = _floats(net, batch)
            if not bool(net.initialized):
                net.initialize(batch.values)
            few = Batch.of(batch, slice(2))
            self.squared_errors(net, few, KeyedStream.of_samples(0, few.values))

        initialize_once(net, split, seed, INITIALIZATION_SAMPLES, start)

    @final
    def make_ready(self, model: nn.Module) -> Ready:
        return certified_ready(_operator_of(model))


@final
@dataclass(frozen=True)
class Approximation(_OperatorObjective):
    r""":math:`|F(x) - K x|^2`, and penalties ("approximation training" of Arndt et al., 2023).

    Its minimum does not depend on noise of mean zero in z, and only weakly on x: of linear F and K
    it is the same for all x whose coefficients in the eigenvectors of K are uncorrelated, and the
    inverse then has the filter :math:`1 / \max(\lambda, 1 - L)` of the eigenvalues
    :math:`\lambda` of K, the squared soft TSVD. Penalties tell F more of x.

    Arguments:
        operator: K, from ``(B, *shape)`` to ``(B, *shape)``, such as a `SelfAdjoint`; None where
            the labels of `fit` are K x, measured or not.
        penalties: What is added to half the squared error, such as a `LogDetPenalty`.
    """

    operator: Callable[[Tensor], Tensor] | None = None
    penalties: tuple[Penalty, ...] = ()

    def squared_errors(self, net: LearnedOperator, batch: Batch, stream: Stream) -> Tensor:
        x = batch.values
        if self.operator is None:
            target = _labels(batch)
        else:
            with torch.no_grad():
                target = _like(x, self.operator(x))
        errors = sum_per_sample((net(x) - target).square())
        for penalty in self.penalties:
            errors = errors + 2 * penalty(net, x, stream)
        return errors


@final
@dataclass(frozen=True)
class Reconstruction(_OperatorObjective):
    r""":math:`|F^{-1}(z) - x|^2` for noisy z ("reconstruction training" of Arndt et al., 2023,
    https://arxiv.org/abs/2307.10431).

    With z = K x + noise, the inverse of F becomes the best estimate of x in the mean square that
    its limits allow: the posterior mean, if it is the inverse of such an F. The gradient goes
    through the certified inverse by the implicit function theorem.

    Arguments:
        operator: K; None where the labels of `fit` are z.
        noise: Standard deviation of what is added to A x, see `SelfAdjoint.observed`; 0 for none.
        tol: Largest certified error of each block's inverse, in root mean squares of the data.

    Raises:
        ValueError: the noise is negative, or there is noise without an operator.
    """

    operator: SelfAdjoint | None = None
    noise: float = 0.0
    tol: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"the noise is a standard deviation, 0 or more, got {self.noise}")
        if self.operator is None and self.noise:
            raise ValueError("noise is added to what an operator gives, and there is none")
        Accuracy(self.tol)

    def squared_errors(self, net: LearnedOperator, batch: Batch, stream: Stream) -> Tensor:
        x = batch.values
        if self.operator is None:
            z = _labels(batch)
        else:
            with torch.no_grad():
                z = _like(x, self.operator.observed(x, self.noise, stream))
        unit = float(net.unit)
        found = net.invert(z, Accuracy(self.tol * unit))
        return sum_per_sample((found.value - x).square())


@objective_of.register
def _(model: LearnedOperator) -> Objective:
    return Approximation()


def _operator_of(model: nn.Module) -> LearnedOperator:
    if not isinstance(model, LearnedOperator):
        raise ValueError(f"this objective trains a LearnedOperator, got a {type(model).__name__}")
    return model


def _relative(net: LearnedOperator, errors: Tensor) -> Tensor:
    return errors / (net.base_dim * net.unit.to(errors.dtype).square())


def _floats(net: LearnedOperator, batch: Batch) -> Batch:
    """A batch on the operator's device."""
    device, labels = net.unit.device, batch.labels
    return Batch(batch.values.to(device), None if labels is None else labels.to(device))


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ValueError(
            "there is nothing to compare with: pass an operator, or what was measured as labels"
        )
    return _like(batch.values, batch.labels)


def _like(x: Tensor, z: Tensor) -> Tensor:
    if z.shape != x.shape or not z.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)}, and what is measured of it {tuple(z.shape)} of "
            f"{z.dtype}; allowed are floats of the same shape (see SelfAdjoint.normal)"
        )
    return z
