"""Products with the Jacobian of a whole flow."""

from typing import final

import torch
from torch import Tensor

from iresflow.linearization import Jacobian
from iresflow.models import Flow

__all__ = ["FlowJacobian"]


@final
class FlowJacobian(Jacobian):
    """The Jacobian of z = F(y) at samples, where y is what the flow's blocks take.

    z ``(B, D)`` is shown in the shape of y, and one graph serves all products: of J by a
    derivative of the product with its transpose, which is linear in its direction. So it works
    for blocks that are solved for, too, which no transform of ``torch.func`` goes through.

    Arguments:
        flow: In eval mode.
        x: Samples as floats ``(B, *shape)``.
        context: ``(B, *context_shape)`` or None.
    """

    def __init__(self, flow: Flow, x: Tensor, context: Tensor | None) -> None:
        self._parts = flow, x, context
        self.point = flow.data_map.transform(x).detach().requires_grad_()
        with torch.enable_grad():
            z = flow.bijection.transform(self.point, context)
            self._z = z.reshape(self.point.shape)
            self._direction = torch.zeros_like(self._z, requires_grad=True)
            self._pulled = torch.autograd.grad(
                self._z, self.point, self._direction, create_graph=True
            )[0]

    def vjp(self, u: Tensor) -> Tensor:
        return torch.stack([_gradient(self._z, self.point, row) for row in u])

    def jvp(self, v: Tensor) -> Tensor:
        return torch.stack([_gradient(self._pulled, self._direction, row) for row in v])

    def rows(self, index: Tensor) -> Jacobian:
        flow, x, context = self._parts
        return FlowJacobian(flow, x[index], None if context is None else context[index])


def _gradient(of: Tensor, at: Tensor, direction: Tensor) -> Tensor:
    return torch.autograd.grad(of, at, direction, retain_graph=True)[0]
