"""What a residual branch shows of itself at a point: its value and products with its Jacobian.

Estimators of log-determinants see a `Linearization` and tensors only, so they work with any
branch: with one that knows its derivatives in closed form (`iresflow.lipschitz.passes.chain`), and
through `FunctionLinearization` with any function that `torch.func` can differentiate.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from iresflow.derivatives import any_order, first_order
from iresflow.horizon import Horizon
from iresflow.powers import Determinant, KrylovFound, KrylovSpace, PowerSums, Series
from iresflow.tensors import dot

__all__ = [
    "FunctionLinearization",
    "Jacobian",
    "Linearization",
    "Map",
]

Map = Callable[[Tensor], Tensor]
"""A map of batches ``(B, *event)``, each sample on its own."""

SHRINK = 0.3
"""Share of a batch that must have ended before it leaves: leaving copies the slopes, for about a
fifth of the cost of a product."""


class Jacobian(ABC):
    r"""Products with the Jacobians :math:`J` of a map at a batch of B points, without a graph.

    Directions are stacked as ``(K, B, *event)``, K of them for each of the B samples.
    """

    lipschitz: float | None = None
    """A certified upper bound of the norm of J at every point; None where none was computed."""

    symmetric: bool = False
    """Whether J is known to be symmetric at every point."""

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        r""":math:`J^\top u` for directions ``(K, B, *event)``."""

    @abstractmethod
    def jvp(self, v: Tensor) -> Tensor:
        r""":math:`J v` for directions ``(K, B, *event)``."""

    @abstractmethod
    def rows(self, index: Tensor) -> "Jacobian":
        """The Jacobians at some of the samples, ``(N,)`` integers: the rest shall cost nothing."""

    def fused_power_sums(self, v: Tensor, series: Series) -> PowerSums | None:
        """`power_sums` in one pass, where there is a faster way than product by product."""
        return None

    def fused_krylov(self, v: Tensor, space: KrylovSpace) -> KrylovFound | None:
        """Krylov spaces of directions ``(K, B, *event)`` in one pass, or None for no such way."""
        return None

    def fused_determinant(self) -> Determinant | None:
        """Determinants of I + J in one pass, or None for no such way."""
        return None

    def fused_columns(self) -> Tensor | None:
        """J's columns ``(B, D, D)``, column i in row i, in one pass, or None for no such way."""
        return None

    @final
    def power_sums(self, v: Tensor, series: Series) -> PowerSums:
        r"""Two weighted sums of the powers of :math:`J^\top`, as series take them.

        Arguments:
            v: Directions ``(K, B, *event)``.
            series: Which powers, and with what weights.
        """
        fused = self.fused_power_sums(v, series)
        if fused is not None:
            return fused
        sums, jacobian, u = PowerSums.start(v), self, v
        if series.fixed:
            for weights in series.weights[1:]:
                u = self.vjp(u)
                sums = sums.plus(u, weights)
            return sums
        most = len(series.weights)
        horizon = Horizon.on(v.device, most, (most, v.shape[2:]), self.lipschitz)
        if horizon is not None:
            return self._power_sums_to(horizon, v, series)
        index = torch.arange(v.shape[1], device=v.device)
        running = torch.ones_like(sums.size, dtype=torch.bool)
        for k, weights in enumerate(series.weights[1:], 1):
            running &= series.goes_on(k, index, sums)
            rows = running.any(0).nonzero()[:, 0]
            if len(rows) == 0:
                break
            if len(index) - len(rows) >= SHRINK * len(index):
                index, u, jacobian = index[rows], u[:, rows], jacobian.rows(rows)
                running = running[:, rows]
            u = jacobian.vjp(u)
            sums = sums.plus_some(u, weights, index, running)
        return sums

    def _power_sums_to(self, horizon: Horizon, v: Tensor, series: Series) -> PowerSums:
        """The same where a look would be waited for: with all samples, and masks."""
        sums, u, every = PowerSums.start(v), v, slice(None)
        running = torch.ones_like(sums.size, dtype=torch.bool)
        for k in itertools.count(1):
            running &= series.goes_on(k, every, sums)
            if horizon.ends(k, running, sums.taken):
                break
            u = self.vjp(u)
            sums = sums.plus_some(u, series.weights[k], every, running)
        return sums


class Linearization(Jacobian):
    r"""A map :math:`g` at a batch of points x, with :math:`J = \partial g / \partial x`."""

    point: Tensor
    """The points x, shape ``(B, *event)``."""

    leaves: Sequence[Tensor] | None = None
    """The tensors that g depends on beside x; None where they are not known."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """g(x), shape ``(B, *event)``, attached to the graph of x and of the parameters.

        Read after `bilinear`, it may share one backward pass with that.
        """

    @abstractmethod
    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        r""":math:`w^\top J v`, shape ``(K, B)``, for directions ``(K, B, *event)``.

        Its gradient reaches x and the parameters; w and v are constants.
        """

    @abstractmethod
    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        """g at other points ``(B, *event)``, by operations that autograd records, to any order.

        Arguments:
            x: Points.
            leaves: What takes the place of `leaves`; those themselves where none are given.
        """

    def recorded_determinant(self) -> Determinant | None:
        """Determinants of I + J by operations that autograd records, to any order, where that
        takes less than J's columns do; None elsewhere."""
        return None

    def any_order(self, first: Tensor, function: Callable[[Map, Tensor], Tensor]) -> Tensor:
        """A function of the map, with cheap first derivatives and those of any order by autograd.

        Arguments:
            first: What has the function's gradient.
            function: Of the map and its points, by operations that autograd records.

        Returns:
            ``first``. Where a graph of its gradient is asked for, that is the function's.
        """
        if not first.requires_grad or self.leaves is None:
            return first_order(first)

        def whole(point: Tensor, *leaves: Tensor) -> Tensor:
            return function(lambda x: self.evaluate(x, *leaves), point)

        return any_order(first, whole, self.point, *self.leaves)

    def reduced(self, dtype: torch.dtype) -> Jacobian:
        """Products that are computed in a narrow type of float, for directions of that type.

        Here, for maps that have no such form: directions are widened, and results rounded.
        """
        return _Widened(self, self.point.dtype, dtype)

    def rows(self, index: Tensor) -> Jacobian:
        # For maps that can't leave samples out: the others are computed, and in vain.
        return _Embedded(self, index)


@final
class FunctionLinearization(Linearization):
    """The linearization of any function, by automatic differentiation.

    Arguments:
        function: Maps ``(B, *event)`` to the same shape, each sample on its own.
        point: Where to linearize, shape ``(B, *event)``.
        lipschitz: A certified upper bound of the function's Lipschitz constant, where known.
    """

    def __init__(self, function: Map, point: Tensor, lipschitz: float | None = None) -> None:
        self.point = point
        self.lipschitz = lipschitz
        self._function = function

    @property
    def value(self) -> Tensor:
        return self._function(self.point)

    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        return self._function(x)

    def any_order(self, first: Tensor, function: Callable[[Map, Tensor], Tensor]) -> Tensor:
        # What the function closes over is not known, so that no node of a graph can name it.
        return function(self._function, self.point)

    def vjp(self, u: Tensor) -> Tensor:
        pullback = vjp(self._function, self.point.detach())[1]
        return vmap(lambda direction: pullback(direction)[0])(u).detach()

    def jvp(self, v: Tensor) -> Tensor:
        return self._pushforward(self.point.detach(), v).detach()

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        # Forward mode inside, reverse mode outside: the tangent is an ordinary node of the graph.
        return dot(w.detach(), self._pushforward(self.point, v.detach()))

    def _pushforward(self, point: Tensor, v: Tensor) -> Tensor:
        tangents = [jvp(self._function, (point,), (direction,))[1] for direction in v]
        return torch.stack(tangents)


@final
class _Embedded(Jacobian):
    """Some samples of a batch, by products with the whole of it."""

    def __init__(self, whole: Linearization, index: Tensor) -> None:
        self.lipschitz = whole.lipschitz
        self._whole = whole
        self._index = index

    def vjp(self, u: Tensor) -> Tensor:
        return self._whole.vjp(self._embed(u))[:, self._index]

    def jvp(self, v: Tensor) -> Tensor:
        return self._whole.jvp(self._embed(v))[:, self._index]

    def rows(self, index: Tensor) -> Jacobian:
        return _Embedded(self._whole, self._index[index])

    def _embed(self, x: Tensor) -> Tensor:
        whole = x.new_zeros(x.shape[0], *self._whole.point.shape)
        whole[:, self._index] = x
        return whole


@final
class _Widened(Jacobian):
    """Products for directions of a narrow type, in the type of the map."""

    def __init__(self, products: Jacobian, wide: torch.dtype, dtype: torch.dtype) -> None:
        self._products = products
        self._wide = wide
        self._dtype = dtype

    def vjp(self, u: Tensor) -> Tensor:
        return self._products.vjp(u.to(self._wide)).to(self._dtype)

    def jvp(self, v: Tensor) -> Tensor:
        return self._products.jvp(v.to(self._wide)).to(self._dtype)

    def rows(self, index: Tensor) -> Jacobian:
        return _Widened(self._products.rows(index), self._wide, self._dtype)
