r"""Differentiation of a solve by the implicit function theorem, to any order.

The solution of :math:`x + g(x; \theta) = y` depends on y and on :math:`\theta`. At the solution,

.. math:: (I + J)\,dx = dy - d_\theta g(x; \theta), \qquad J = \partial g / \partial x,

so with :math:`u = y - g(\bar x; \theta)`, the solution :math:`\bar x` held constant in it,
:math:`dx = (I + J)^{-1} du`. A gradient :math:`v = \partial \ell / \partial x` becomes
:math:`w = (I + J)^{-\top} v`, the solution of :math:`w + J^\top w = v`: the same kind of equation,
with the same Lipschitz bound, since :math:`|J^\top| = |J| \le L`. Then
:math:`\partial\ell/\partial y = w` and :math:`\partial\ell/\partial\theta = -w^\top \partial g /
\partial \theta`, which ordinary backpropagation through u finds. So one node of the graph is all
that is special, and no iterate is kept.

Where a graph of that gradient is asked for, w is itself such a solution, of :math:`w + J(x;
\theta)^\top w = v`, and the same node is put on it: :math:`u = v - J(x; \theta)^\top \bar w`, now
recorded in x and :math:`\theta`, and the equation of its own backward pass is the transposed one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.solvers.base import JacobianProduct, Solver
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
    Derivatives of any order are right.

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
    equation = _Equation(linearization, lipschitz, solver, context, "vjp")
    return _Solution.apply(y - linearization.value, x, equation)


@final
@dataclass(frozen=True, eq=False)
class _Equation:
    """The linear equation of a backward pass, and how to record it.

    Attributes:
        kind: ``vjp`` for :math:`w + J^\\top w = v`, ``jvp`` for :math:`w + J w = v`.
        point: x with its graph; None where the solution itself is x.
    """

    linearization: Linearization
    lipschitz: float
    solver: Solver
    context: str
    kind: Literal["jvp", "vjp"]
    point: Tensor | None = None

    def solve(self, v: Tensor) -> Tensor:
        """w, without a graph."""
        dtype = self.linearization.point.dtype
        # The equation is linear: scaled to norm 1, one tolerance is relative to each sample.
        scale = norm_per_sample(v).clamp_min(torch.finfo(v.dtype).tiny)
        scale = scale.reshape(-1, *[1] * (v.ndim - 1))
        solution = solve(
            [JacobianProduct(self.linearization, self.kind, len(v), dtype)],
            v / scale,
            lipschitz=self.lipschitz,
            tol=torch.finfo(dtype).eps ** 0.75,
            solver=self.solver,
            context=f"the gradient of {self.context}",
        )
        return solution.value.to(v.dtype) * scale

    def recorded(self, v: Tensor, point: Tensor) -> Tensor:
        """w with its graph in v, the point and the parameters."""
        w = self.solve(v.detach())
        product = _PRODUCTS[self.kind](self.linearization, point, w)
        transposed: Literal["jvp", "vjp"] = "jvp" if self.kind == "vjp" else "vjp"
        equation = replace(self, kind=transposed, point=point)
        return _Solution.apply(v - product.to(v.dtype), w, equation)


class _Solution(torch.autograd.Function):
    """The solution of u; see the head of this file for the derivation and the symbols."""

    @staticmethod
    def forward(ctx: Any, driven: Tensor, solution: Tensor, equation: _Equation) -> Tensor:  # noqa: ANN401
        ctx.equation = equation
        result = solution.clone()
        ctx.save_for_backward(result if equation.point is None else equation.point)
        return result

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (point,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return ctx.equation.solve(v), None, None
        return ctx.equation.recorded(v, point), None, None


def _vjp(linearization: Linearization, point: Tensor, w: Tensor) -> Tensor:
    """The product of the transposed Jacobian with a constant w, recorded."""
    x = point.to(linearization.point.dtype)
    x = x if x.requires_grad else x.detach().requires_grad_()
    value = linearization.evaluate(x)
    (product,) = torch.autograd.grad(value, x, w.to(value.dtype), create_graph=True)
    return product


def _jvp(linearization: Linearization, point: Tensor, w: Tensor) -> Tensor:
    """The product of the Jacobian with a constant w, recorded: reverse mode twice."""
    x = point.to(linearization.point.dtype)
    x = x if x.requires_grad else x.detach().requires_grad_()
    value = linearization.evaluate(x)
    start = torch.zeros_like(value).requires_grad_()
    (pulled,) = torch.autograd.grad(value, x, start, create_graph=True)
    (product,) = torch.autograd.grad(pulled, start, w.to(value.dtype), create_graph=True)
    return product


_PRODUCTS: dict[str, Callable[[Linearization, Tensor, Tensor], Tensor]] = {
    "jvp": _jvp,
    "vjp": _vjp,
}
