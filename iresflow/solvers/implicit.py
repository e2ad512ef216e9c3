r"""Differentiation of a solve by the implicit function theorem.

The solution of :math:`x + g(x; \theta) = y` depends on y and on :math:`\theta`. At the solution,

.. math:: (I + J)\,dx = dy - d_\theta g(x; \theta), \qquad J = \partial g / \partial x,

so with :math:`u = y - g(\bar x; \theta)`, the solution :math:`\bar x` held constant in it,
:math:`dx = (I + J)^{-1} du`. A gradient :math:`v = \partial \ell / \partial x` becomes
:math:`w = (I + J)^{-\top} v`, the solution of :math:`w + J^\top w = v`: the same kind of equation,
with the same Lipschitz bound, since :math:`|J^\top| = |J| \le L`. Then
:math:`\partial\ell/\partial y = w` and :math:`\partial\ell/\partial\theta = -w^\top \partial g /
\partial \theta`, which ordinary backpropagation through u finds. So one node of the graph is all
that is special, and no iterate is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from iresflow.linearization import Linearization
from iresflow.solvers.base import Arithmetic, Solver, product_map
from iresflow.solvers.driver import solve
from iresflow.tensors import norm_per_sample

__all__ = ["attach"]


def attach(
    x: Tensor,
    y: Tensor,
    linearization: Linearization,
    *,
    lipschitz: float,
    solver: Solver,
    context: str = "the map",
) -> Tensor:
    """The solution x, with the gradients that y and the parameters of g are due.

    The linear equation of the backward pass is solved sample by sample to an error of
    ``eps ** 0.75`` of its gradient's norm (2e-12 in float64, 6e-6 in float32), or to rounding.

    Arguments:
        x: The solution, ``(B, *event)``, without a graph.
        y: What was inverted, of the same shape.
        linearization: g at x, attached to the graph of its parameters.
        lipschitz: Certified upper bound of its Lipschitz constant, below 1.
        solver: Of that equation.
        context: What was inverted, for messages.

    Raises:
        InversionError: in the backward pass, as `solve`.
    """
    driven = y - linearization.value
    return _ImplicitFunction.apply(driven, x, linearization, lipschitz, solver, context)


class _ImplicitFunction(torch.autograd.Function):
    """x of u; see the head of this file for the derivation and the symbols."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (attributes are set on it)
        driven: Tensor,
        x: Tensor,
        linearization: Linearization,
        lipschitz: float,
        solver: Solver,
        context: str,
    ) -> Tensor:
        ctx.linearization = linearization
        ctx.settings = {"lipschitz": lipschitz, "solver": solver}
        ctx.context = context
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        linearization: Linearization = ctx.linearization
        dtype = linearization.point.dtype

        transposed = product_map(lambda p, u: p.vjp(u), linearization, len(v))
        # The equation is linear: scaled to norm 1, one tolerance is relative to each sample.
        scale = norm_per_sample(v).clamp_min(torch.finfo(v.dtype).tiny)
        scale = scale.reshape(-1, *[1] * (v.ndim - 1))
        solution = solve(
            [Arithmetic(transposed, dtype)],
            v / scale,
            tol=torch.finfo(dtype).eps ** 0.75,
            context=f"the gradient of {ctx.context}",
            **ctx.settings,
        )
        return (solution.value.to(v.dtype) * scale, *[None] * 5)
