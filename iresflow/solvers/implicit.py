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

Where a graph of that gradient is asked for, both w and :math:`w^\top \partial g / \partial \theta`
are recorded as functions of x, y and :math:`\theta`: w is itself the solution of an equation of
this kind, :math:`w + J(x; \theta)^\top w = v`, and so a node as x is, with v in the place of y, x
among the parameters, and the transposed Jacobian.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from iresflow.ambient import keeps_arithmetic
from iresflow.derivatives import recorded_gradients
from iresflow.errors import DerivativeError
from iresflow.linearization import Jacobian, Linearization
from iresflow.solvers.base import JacobianProduct, Solver
from iresflow.solvers.driver import solve
from iresflow.tensors import norm_per_sample, per_sample

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
    leaves, dtype = linearization.leaves, linearization.point.dtype

    def function(s: Tensor, *tensors: Tensor) -> Tensor:
        return linearization.evaluate(s.to(dtype), *tensors).to(s.dtype)

    equation = _Equation(
        function, linearization, "vjp", dtype, lipschitz, solver, context, leaves is not None
    )
    return _Implicit.apply(y - linearization.value, x, equation, y, *(leaves or ()))


@final
@dataclass(frozen=True, eq=False)
class _Equation:
    r""":math:`s + G(s; \theta) = y`, to be differentiated at a solution.

    Attributes:
        function: G, of s and of the leaves :math:`\theta`, by operations that autograd records.
        jacobian: J, that of g.
        kind: The product with J that is the one with the transposed Jacobian of G in s.
        dtype: Of the products.
        lipschitz, solver, context: As of `attach`.
        known: Whether the leaves are all that G depends on.
    """

    function: Callable[..., Tensor]
    jacobian: Jacobian
    kind: Literal["jvp", "vjp"]
    dtype: torch.dtype
    lipschitz: float
    solver: Solver
    context: str
    known: bool = True

    def transposed_solution(self, v: Tensor) -> Tensor:
        r"""w of :math:`w + (\partial G / \partial s)^\top w = v`, without a graph."""
        # The equation is linear: scaled to norm 1, one tolerance is relative to each sample.
        scale = per_sample(norm_per_sample(v).clamp_min(torch.finfo(v.dtype).tiny), v)
        solution = solve(
            [JacobianProduct(self.jacobian, self.kind, len(v), self.dtype)],
            v / scale,
            lipschitz=self.lipschitz,
            tol=torch.finfo(self.dtype).eps ** 0.75,
            solver=self.solver,
            context=f"the gradient of {self.context}",
        )
        return solution.value.to(v.dtype) * scale

    def transposed(self) -> "_Equation":
        """The equation of w, whose leaves are s and those of this one."""

        def function(w: Tensor, s: Tensor, *leaves: Tensor) -> Tensor:
            s = s.view_as(s) if s.requires_grad else s.detach().requires_grad_()
            value = self.function(s, *leaves)
            (product,) = torch.autograd.grad(value, s, w.to(value.dtype), create_graph=True)
            return product.to(w.dtype)

        kind: Literal["jvp", "vjp"] = "jvp" if self.kind == "vjp" else "vjp"
        return replace(self, function=function, kind=kind)


@keeps_arithmetic
class _Implicit(torch.autograd.Function):
    """The solution s of an equation; see the head of this file for the derivation.

    Its first derivatives reach u, ``driven``, where one is given, and else y and the leaves.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (attributes are set on it)
        driven: Tensor | None,
        solution: Tensor,
        equation: _Equation,
        y: Tensor,
        *leaves: Tensor,
    ) -> Tensor:
        ctx.equation, ctx.driven = equation, driven is not None
        result = solution.clone()
        ctx.save_for_backward(result, *leaves)
        return result

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        equation, (s, *leaves) = ctx.equation, ctx.saved_tensors
        w = equation.transposed_solution(v.detach())
        if not torch.is_grad_enabled():
            if ctx.driven:
                return (w, None, None, None, *[None] * len(leaves))
            s = s.detach()
        else:
            if not equation.known:
                raise DerivativeError(
                    "a derivative of an inverse's gradient takes a branch that names the tensors "
                    "it depends on (Linearization.leaves)"
                )
            w = _Implicit.apply(None, w, equation.transposed(), v, s, *leaves)
        function = equation.function
        gradients = recorded_gradients(lambda *tensors: function(s, *tensors), leaves, -w)
        return (None, None, None, w, *gradients)
