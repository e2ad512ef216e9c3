"""What a residual branch shows of itself at a point: its value and products with its Jacobian.

Estimators of log-determinants see a `Linearization` and tensors only, so they work with any
branch: with one that knows its derivatives in closed form (`iresflow.lipschitz.passes.chain`), and
through `FunctionLinearization` with any function that `torch.func` can differentiate.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from iresflow.tensors import dot, norms, spread

__all__ = ["FunctionLinearization", "Linearization", "PowerSums", "Products", "Series"]

SHRINK = 0.3
"""Share of a batch that must have ended before it leaves: leaving copies the slopes, for about a
fifth of the cost of a product."""


@final
@dataclass(frozen=True)
class Series:
    r"""Two series in the powers :math:`u_k = (J^\top)^k v` of K directions, k = 0, 1, ...

    Attributes:
        weights: Those of :math:`u_k` in `PowerSums.neumann` and `PowerSums.weighted`; both 1 for
            k = 0. As many terms at most.
        terms: How many each direction takes, ``(K, B)`` integers from 1; None for all.
        enough: A direction ends, ``(K, B)``, at the first k with :math:`|u_{k-1}|` below k times
            this; None for never.
    """

    weights: Sequence[tuple[float, float]]
    terms: Tensor | None = None
    enough: Tensor | None = None


@final
@dataclass(frozen=True)
class PowerSums:
    r"""Weighted sums of the powers :math:`u_k = (J^\top)^k v` of K directions, k = 0, 1, ...

    Attributes:
        neumann, weighted: Two sums, ``(K, B, *event)``, with weights of their own.
        taken: The number of their terms, ``(K, B)``.
        size: The norm of the last term's power, ``(K, B)``.
        growth: The largest factor by which a product made a power longer, ``(K, B)``.
    """

    neumann: Tensor
    weighted: Tensor
    taken: Tensor
    size: Tensor
    growth: Tensor


class Products(ABC):
    r"""Products with the Jacobians :math:`J` of a map at a batch of B points, without a graph.

    Directions are stacked as ``(K, B, *event)``, K of them for each of the B samples.
    """

    lipschitz: float | None = None
    """A certified upper bound of the norm of J at every point; None where none was computed."""

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        r""":math:`J^\top u` for directions ``(K, B, *event)``."""

    @abstractmethod
    def jvp(self, v: Tensor) -> Tensor:
        r""":math:`J v` for directions ``(K, B, *event)``."""

    @abstractmethod
    def narrow(self, index: Tensor) -> "Products":
        """The products at some of the samples, ``(N,)`` integers: the rest shall cost nothing."""

    def power_sums(self, v: Tensor, series: Series) -> PowerSums:
        r"""Two weighted sums of the powers of :math:`J^\top`, as series take them.

        Arguments:
            v: Directions ``(K, B, *event)``.
            series: Which powers, and with what weights.
        """
        weights, terms, enough = series.weights, series.terms, series.enough
        size = norms(v)
        sums = PowerSums(v.clone(), v.clone(), torch.ones_like(size), size, torch.zeros_like(size))
        if terms is None and enough is None:
            return self._fixed_sums(v, weights[1:], sums)
        index, products, u = torch.arange(v.shape[1], device=v.device), self, v
        running = torch.ones_like(size, dtype=torch.bool)
        for k, (neumann, weighted) in enumerate(weights[1:], 1):
            if terms is not None:
                running &= terms[:, index] > k
            if enough is not None:
                running &= sums.size[:, index] >= k * enough[:, index]
            rows = running.any(0).nonzero()[:, 0]
            if len(rows) == 0:
                break
            if len(index) - len(rows) >= SHRINK * len(index):
                index, u, products = index[rows], u[:, rows], products.narrow(rows)
                running = running[:, rows]
            u = products.vjp(u)
            before, size = sums.size[:, index], norms(u)
            growth = torch.where(running, _ratio(size, before), 0)
            sums.growth[:, index] = torch.maximum(sums.growth[:, index], growth)
            sums.size[:, index] = torch.where(running, size, before)
            sums.taken[:, index] += running
            # Directions that have ended are multiplied on, and their terms not added.
            part = u * spread(running, u)
            sums.neumann[:, index] += neumann * part
            sums.weighted[:, index] += weighted * part
        return sums

    def _fixed_sums(
        self, u: Tensor, weights: Sequence[tuple[float, float]], sums: PowerSums
    ) -> PowerSums:
        """All terms for all directions: nothing waits for what the device finds."""
        size, growth = sums.size, sums.growth
        for neumann, weighted in weights:
            u = self.vjp(u)
            before, size = size, norms(u)
            growth = torch.maximum(growth, _ratio(size, before))
            sums.neumann.add_(u, alpha=neumann)
            sums.weighted.add_(u, alpha=weighted)
        taken = sums.taken + len(weights)
        return PowerSums(sums.neumann, sums.weighted, taken, size, growth)


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return after / before.clamp_min(torch.finfo(before.dtype).tiny)


class Linearization(Products):
    r"""A map :math:`g` at a batch of points x, with :math:`J = \partial g / \partial x`."""

    point: Tensor
    """The points x, shape ``(B, *event)``."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """g(x), shape ``(B, *event)``, attached to the graph of x and of the parameters.

        Read it after `bilinear`: an implementation may then share one backward pass between both.
        """

    @abstractmethod
    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        r""":math:`w^\top J v`, shape ``(K, B)``, for directions ``(K, B, *event)``.

        Its gradient reaches x and the parameters; w and v are constants.
        """

    def reduced(self, dtype: torch.dtype) -> Products:
        """Products that are computed in a narrow type of float, for directions of that type.

        Here, for maps that have no such form: directions are widened, and results rounded.
        """
        return _Widened(self, self.point.dtype, dtype)

    def narrow(self, index: Tensor) -> Products:
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

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        point: Tensor,
        lipschitz: float | None = None,
    ) -> None:
        self.point = point
        self.lipschitz = lipschitz
        self._function = function

    @property
    def value(self) -> Tensor:
        return self._function(self.point)

    def vjp(self, u: Tensor) -> Tensor:
        _, pullback = vjp(self._function, self.point.detach())
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
class _Embedded(Products):
    """Some samples of a batch, by products with the whole of it."""

    def __init__(self, whole: Linearization, index: Tensor) -> None:
        self.lipschitz = whole.lipschitz
        self._whole = whole
        self._index = index

    def vjp(self, u: Tensor) -> Tensor:
        return self._whole.vjp(self._embed(u))[:, self._index]

    def jvp(self, v: Tensor) -> Tensor:
        return self._whole.jvp(self._embed(v))[:, self._index]

    def narrow(self, index: Tensor) -> Products:
        return _Embedded(self._whole, self._index[index])

    def _embed(self, x: Tensor) -> Tensor:
        whole = x.new_zeros(x.shape[0], *self._whole.point.shape)
        whole[:, self._index] = x
        return whole


@final
class _Widened(Products):
    """Products for directions of a narrow type, in the type of the map."""

    def __init__(self, products: Products, wide: torch.dtype, dtype: torch.dtype) -> None:
        self._products = products
        self._wide = wide
        self._dtype = dtype

    def vjp(self, u: Tensor) -> Tensor:
        return self._products.vjp(u.to(self._wide)).to(self._dtype)

    def jvp(self, v: Tensor) -> Tensor:
        return self._products.jvp(v.to(self._wide)).to(self._dtype)

    def narrow(self, index: Tensor) -> Products:
        return _Widened(self._products.narrow(index), self._wide, self._dtype)
