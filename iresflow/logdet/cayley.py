r"""The log-determinant of a Cayley transform, from estimates of two others.

A monotone block has the Jacobian :math:`(I - J)(I + J)^{-1}`, so :math:`\log\det(I - J) -
\log\det(I + J) = -2 \sum_{k\ \text{odd}} \operatorname{tr} J^k / k` (Ahn et al., 2022). Both terms
are estimated with the same probes and lengths of series: then the even powers cancel in what is
drawn too, and not only in the mean.
"""

import copy
from typing import final

import torch
from torch import Tensor

from iresflow.linearization import Jacobian, Linearization
from iresflow.powers import Determinant, PowerSums, Series
from iresflow.streams import KeyedStream, PartialStream, Stream, fresh_seed

__all__ = ["Cayley", "Negated", "twins"]


class _Wrapped(Linearization):
    """Another linearization, under another name."""

    def __init__(self, inner: Linearization) -> None:
        self.inner = inner
        self.point = inner.point
        self.lipschitz = inner.lipschitz
        self.symmetric = inner.symmetric
        self.leaves = inner.leaves

    @property
    def value(self) -> Tensor:
        return self.inner.value

    def vjp(self, u: Tensor) -> Tensor:
        return self.inner.vjp(u)

    def jvp(self, v: Tensor) -> Tensor:
        return self.inner.jvp(v)

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        return self.inner.bilinear(w, v)

    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        return self.inner.evaluate(x, *leaves)

    def rows(self, index: Tensor) -> Jacobian:
        return self.inner.rows(index)

    def reduced(self, dtype: torch.dtype) -> Jacobian:
        return self.inner.reduced(dtype)

    def fused_power_sums(self, v: Tensor, series: Series) -> PowerSums | None:
        return self.inner.fused_power_sums(v, series)

    def fused_determinant(self) -> Determinant | None:
        return self.inner.fused_determinant()

    def fused_columns(self) -> Tensor | None:
        return self.inner.fused_columns()

    def recorded_determinant(self) -> Determinant | None:
        return self.inner.recorded_determinant()


@final
class Cayley(_Wrapped):
    r"""g at a point where :math:`\log\det(I - J) - \log\det(I + J)` is asked for.

    It has the values and products of g itself: every `LogDetEstimator` knows the question.

    Arguments:
        inner: g.
    """


@final
class Negated(_Wrapped):
    """Minus g.

    Arguments:
        inner: g.
    """

    @property
    def value(self) -> Tensor:
        return -self.inner.value

    def vjp(self, u: Tensor) -> Tensor:
        return -self.inner.vjp(u)

    def jvp(self, v: Tensor) -> Tensor:
        return -self.inner.jvp(v)

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        return -self.inner.bilinear(w, v)

    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        return -self.inner.evaluate(x, *leaves)

    def rows(self, index: Tensor) -> Jacobian:
        return _NegatedProducts(self.inner.rows(index))

    def reduced(self, dtype: torch.dtype) -> Jacobian:
        return _NegatedProducts(self.inner.reduced(dtype))

    def fused_power_sums(self, v: Tensor, series: Series) -> PowerSums | None:
        # The odd powers change their signs.
        weights = [(a, b) if k % 2 == 0 else (-a, -b) for k, (a, b) in enumerate(series.weights)]
        return self.inner.fused_power_sums(v, Series(weights, series.terms, series.enough))

    def fused_determinant(self) -> None:
        return None  # it is of I + J

    def recorded_determinant(self) -> None:
        return None  # likewise

    def fused_columns(self) -> Tensor | None:
        columns = self.inner.fused_columns()
        return None if columns is None else -columns


@final
class _NegatedProducts(Jacobian):
    def __init__(self, inner: Jacobian) -> None:
        self.inner = inner
        self.lipschitz = inner.lipschitz

    def vjp(self, u: Tensor) -> Tensor:
        return -self.inner.vjp(u)

    def jvp(self, v: Tensor) -> Tensor:
        return -self.inner.jvp(v)

    def rows(self, index: Tensor) -> Jacobian:
        return _NegatedProducts(self.inner.rows(index))


def twins(stream: Stream | None, device: torch.device) -> tuple[Stream, Stream]:
    """Two streams that draw the same numbers: those that this one would have drawn.

    Arguments:
        stream: It moves on with the second one. None for a seed of torch's global stream.
        device: Of the numbers, where there is no stream.
    """
    if stream is None:
        stream = torch.Generator(device).manual_seed(fresh_seed(None))
    if isinstance(stream, KeyedStream):
        return copy.copy(stream), stream
    if isinstance(stream, PartialStream):
        return PartialStream(_copied(stream.generator), stream.whole, stream.first), stream
    return _copied(stream), stream


def _copied(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).set_state(generator.get_state())
