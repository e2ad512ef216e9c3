r"""A branch at fixed weights, and its linearization in closed form.

The slopes of the activations are computed once, so products with the Jacobian and its transpose
need no graph (`iresflow.lipschitz.passes.plain`). The gradient of value and bilinear form together
takes one tangent pass and one adjoint pass: `_ChainFunction`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, final

import torch
from torch import Tensor

from iresflow.ambient import keeps_arithmetic
from iresflow.derivatives import recorded_gradients
from iresflow.errors import DerivativeError
from iresflow.linearization import FunctionLinearization, Linearization
from iresflow.lipschitz.layers.convolution import same_layout
from iresflow.lipschitz.passes.choice import native_passes
from iresflow.lipschitz.passes.links import Link, evaluate
from iresflow.lipschitz.passes.low_rank import low_rank_determinant
from iresflow.lipschitz.passes.plain import Passes, TorchPasses
from iresflow.powers import Determinant, KrylovFound, KrylovSpace, PowerSums, Series
from iresflow.tensors import dot, transformed

__all__ = ["Chain", "ChainLinearization"]


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """A branch with its weights normalised once: whatever is asked of it is of one map.

    Attributes:
        links: First to last; range and domain have the same shape. Their tensors may be attached
            to a graph.
        lipschitz: A certified bound of the Lipschitz constant with these weights, or None.
        recompute: Whether a backward pass computes the hidden tensors anew, instead of keeping
            them: two more products a layer, for memory that no longer grows with the layers.
        symmetric: Whether the Jacobian is symmetric at every point.
    """

    links: tuple[Link, ...]
    lipschitz: float | None = None
    recompute: bool = False
    symmetric: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the map depends on beside its points."""
        return tuple(t for link in self.links for t in link.tensors if t is not None)

    def value(self, x: Tensor) -> Tensor:
        """g(x) alone: ``(B, *event)`` to the same, recorded by autograd where that records."""
        if transformed():
            return evaluate(self.links, x)
        native = native_passes(self.links, x)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *self.tensors)):
            # A node of its own, whose gradient is in the arithmetic of here: that of PyTorch's
            # operations would be in that of the place where a backward pass is started.
            value = ChainLinearization(self, x, native).value
        elif native is None:
            return evaluate(self.links, x)
        else:
            value = native.value(x)
        return value.contiguous() if x.is_contiguous() else value

    def linearize(self, x: Tensor) -> Linearization:
        """g at points ``(B, *event)``, attached to the graph of its weights."""
        if transformed():
            # Closed forms are no nodes that torch.func could transform.
            return FunctionLinearization(partial(evaluate, self.links), x, self.lipschitz)
        return ChainLinearization(self, x)

    def negated(self) -> "Chain":
        """Minus the branch: its last layer changes its sign."""
        *links, last = self.links
        last = replace(last, weight=-last.weight, bias=-last.bias)
        return replace(self, links=(*links, last))

    def rows(self, index: Tensor) -> "Chain":
        """The chain for some samples ``(N,)`` of the batch, with their rows of the context."""
        return replace(self, links=tuple(link.rows(index) for link in self.links))


@final
class ChainLinearization(Linearization):
    """A chain at a point. See `Linearization` for the contract.

    Arguments:
        chain: The chain.
        point: Where to linearize, ``(B, *event)``.
        passes: Those to use; None for the fastest there are.
    """

    def __init__(self, chain: Chain, point: Tensor, passes: Passes | None = None) -> None:
        self.point = point
        self.lipschitz = chain.lipschitz
        self.symmetric = chain.symmetric
        self.leaves: tuple[Tensor, ...] = chain.tensors
        self._chain = chain
        self._passes: Passes = (
            passes or native_passes(chain.links, point) or TorchPasses(chain.links)
        )
        self._value, hidden = self._passes.primal(point.detach())
        self._inputs, self._slopes = hidden.inputs, hidden.slopes
        self._tangents: tuple[Tensor, list[Tensor]] | None = None  # v, and its images
        self._attached: Tensor | None = None

    @property
    def value(self) -> Tensor:
        if not self._needs_graph():
            return self._value
        if self._attached is None:
            self._attached, _ = self._apply(None)
        return self._attached

    def vjp(self, u: Tensor) -> Tensor:
        return self._passes.vjp(self._slopes, same_layout(u.flatten(0, 1))).view(u.shape)

    def jvp(self, v: Tensor) -> Tensor:
        if self._tangents is None or self._tangents[0] is not v:
            images = self._passes.tangents(self._slopes, same_layout(v.flatten(0, 1)))
            self._tangents = (v, images)
        return self._tangents[1][-1].view(v.shape)

    def fused_power_sums(self, v: Tensor, series: Series) -> PowerSums | None:
        return self._passes.power_sums(self._slopes, v, series)

    def fused_krylov(self, v: Tensor, space: KrylovSpace) -> KrylovFound | None:
        return self._passes.krylov(self._slopes, v, space)

    def fused_determinant(self) -> Determinant | None:
        return self._passes.determinant(self._slopes, len(self.point))

    def fused_columns(self) -> Tensor | None:
        return self._passes.columns(self._slopes, len(self.point))

    def recorded_determinant(self) -> Determinant | None:
        return low_rank_determinant(self._chain.links, self.point)

    def rows(self, index: Tensor) -> Self:
        return self._products_with([None if s is None else s[index] for s in self._slopes])

    def reduced(self, dtype: torch.dtype) -> Self:
        reduced = self._products_with([None if s is None else s.to(dtype) for s in self._slopes])
        reduced._passes, reduced.lipschitz = self._passes.to(dtype), None
        return reduced

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        if not self._needs_graph():
            return dot(w, self.jvp(v))
        self.jvp(v)  # kept from the last call, if that was for the same v
        value, form = self._apply(w)
        if self._attached is None:
            self._attached = value
        return form

    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        return evaluate(_with_tensors(self._chain.links, leaves or self.leaves), x)

    def _apply(self, w: Tensor | None) -> tuple[Tensor, Tensor]:
        return _ChainFunction.apply(self, w, self.point, *self.leaves)

    def _needs_graph(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in (self.point, *self.leaves))

    def _products_with(self, slopes: list[Tensor | None]) -> Self:
        """A copy that knows products alone, with other slopes."""
        products = copy.copy(self)
        products._slopes, products._inputs, products._tangents = slopes, [], None
        return products


@keeps_arithmetic
class _ChainFunction(torch.autograd.Function):
    r"""Value and bilinear form of a chain, with one adjoint pass for both.

    With t the tangent of v, the outputs are :math:`h_n` and :math:`s = w^\top t_n`, w and v
    constant. The backward pass is `Passes.adjoint`; one of which autograd shall make a graph goes
    through the reference.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (attributes are set on it)
        linearization: ChainLinearization,
        w: Tensor | None,
        point: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passes = linearization._passes
        tangents: list[Tensor] = []
        form = point.new_zeros(())
        if w is not None and linearization._tangents is not None:
            w = w.detach()
            *tangents, image = linearization._tangents[1]
            form = dot(w, image.view(w.shape))
        hidden = [*linearization._inputs, *tangents]
        ctx.recompute = linearization._chain.recompute
        if ctx.recompute:
            hidden = [linearization._inputs[0], *tangents[:1]]
        ctx.count = len(leaves)
        # The leaves are saved so that autograd notices if they change in between.
        ctx.save_for_backward(w, point, *leaves, *hidden)
        return linearization._value.view_as(linearization._value), form

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad_value: Tensor | None,
        grad_form: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        w, point, *saved = ctx.saved_tensors
        leaves, hidden = saved[: ctx.count], saved[ctx.count :]
        links = ctx.passes.links
        if grad_value is None and grad_form is None:  # another path has the gradient
            return (None, None, *[None] * (1 + len(leaves)))
        if torch.is_grad_enabled():
            if grad_value is None or grad_form is not None:
                raise DerivativeError

            def value(x: Tensor, *tensors: Tensor) -> Tensor:
                return evaluate(_with_tensors(links, tensors), x)

            return (None, None, *recorded_gradients(value, (point, *leaves), grad_value))
        if ctx.recompute:
            hidden = _recomputed(ctx.passes, *hidden)
        inputs, tangents = hidden[: len(links)], hidden[len(links) :]
        after = _start(inputs[0], w, grad_value, grad_form)
        if len(after) == len(inputs[0]):
            tangents = []
        tensors = [t for link in links for t in link.tensors]
        wanted = iter(ctx.needs_input_grad[3:])
        needed = [t is not None and next(wanted) for t in tensors]
        before, gradients = ctx.passes.adjoint(inputs, tangents, after, needed)
        of_leaves = (g for t, g in zip(tensors, gradients, strict=True) if t is not None)
        return (None, None, before, *of_leaves)


def _with_tensors(links: Sequence[Link], tensors: Sequence[Tensor]) -> list[Link]:
    """Links with other tensors, in the order of `Chain.tensors`."""
    rest = iter(tensors)
    return [
        replace(
            link,
            weight=next(rest),
            bias=next(rest),
            beta=None if link.beta is None else next(rest),
        )
        for link in links
    ]


def _recomputed(passes: Passes, point: Tensor, v: Tensor | None = None) -> list[Tensor]:
    """What enters each link and, where there are tangents v ``(K B, ...)``, theirs."""
    _, hidden = passes.primal(point)
    if v is None:
        return hidden.inputs
    return [*hidden.inputs, *passes.tangents(hidden.slopes, v)[:-1]]


def _start(
    point: Tensor, w: Tensor | None, grad_value: Tensor | None, grad_form: Tensor | None
) -> Tensor:
    """Adjoints of the chain's value and of its K tangents, ``((1 + K) B, *event)``."""
    primal = torch.zeros_like(point) if grad_value is None else grad_value
    if w is None or grad_form is None:
        return same_layout(primal)
    tangent = w * grad_form.reshape(*grad_form.shape, *[1] * (w.ndim - 2))
    return same_layout(torch.cat([primal, tangent.flatten(0, 1)]))
