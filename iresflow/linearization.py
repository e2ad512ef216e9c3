"""What a residual branch shows of itself at a point: its value and products with its Jacobian.

Estimators of log-determinants see a `Linearization` and tensors only, so they work with any
branch: with one that knows its derivatives in closed form (`iresflow.lipschitz.chain`), and
through `FunctionLinearization` with any function that `torch.func` can differentiate.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from iresflow.tensors import dot

__all__ = ["FunctionLinearization", "Linearization"]


class Linearization(ABC):
    r"""A map :math:`g` at a batch of points :math:`x`, with :math:`J = \partial g / \partial x`.

    Directions are stacked as ``(K, B, *event)``, K of them for each of the B samples.
    """

    point: Tensor
    """The points x, shape ``(B, *event)``."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """g(x), shape ``(B, *event)``, attached to the graph of x and of the parameters.

        Read it after `bilinear`: an implementation may then share one backward pass between both.
        """

    @abstractmethod
    def vjp(self, u: Tensor) -> Tensor:
        r""":math:`J^\top u` for directions ``(K, B, *event)``, without a graph."""

    @abstractmethod
    def jvp(self, v: Tensor) -> Tensor:
        r""":math:`J v` for directions ``(K, B, *event)``, without a graph."""

    @abstractmethod
    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        r""":math:`w^\top J v`, shape ``(K, B)``, for directions ``(K, B, *event)``.

        Its gradient reaches x and the parameters; w and v are constants.
        """


@final
class FunctionLinearization(Linearization):
    """The linearization of any function, by automatic differentiation.

    Arguments:
        function: Maps ``(B, *event)`` to the same shape, each sample on its own.
        point: Where to linearize, shape ``(B, *event)``.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], point: Tensor) -> None:
        self.point = point
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
