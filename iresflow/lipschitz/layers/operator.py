"""What a linear layer is to those who measure its norm: an operator for each weight."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from iresflow.lipschitz.bounds.base import Bound

__all__ = ["Operator", "OperatorFamily", "broadcast_bias"]

Operator = Callable[[Tensor], Tensor]
"""A linear (or affine) map of batches."""


class OperatorFamily(ABC):
    """A linear operator A for each weight of some shape.

    Attributes:
        plain: Whether it is a matrix, or a convolution with zero padding and stride 1.
        transposes: Whether the transpose of each is one of the same family.
    """

    plain: bool = False
    transposes: bool = False

    @abstractmethod
    def operator(self, weight: Tensor, bias: Tensor | None = None) -> Operator:
        """A, plus a bias ``(D,)`` where one is given, prepared for many batches ``(N, ...)``."""

    @abstractmethod
    def adjoint(self, weight: Tensor) -> Operator:
        """The adjoint of A, likewise. Its results are new tensors, which may be overwritten."""

    def gram(self, weight: Tensor, domain: bool) -> Operator:
        r""":math:`A^\top A` on the domain of A, or :math:`A A^\top` on its range, likewise."""
        multiply, adjoint = self.operator(weight), self.adjoint(weight)
        return (lambda x: adjoint(multiply(x))) if domain else (lambda u: multiply(adjoint(u)))

    @abstractmethod
    def weight_gradient(self, x: Tensor, u: Tensor) -> Tensor:
        """Gradient of the sum of ``u * (A x)`` with respect to the weight."""

    @abstractmethod
    def smooth_bound(self, weight: Tensor) -> Tensor:
        """A rigorous upper bound of the norm of A, a float64 scalar with a gradient."""

    @abstractmethod
    def tight_bound(self, weight: Tensor, left: Tensor) -> Bound:
        """The tightest rigorous bound of the norm of A that is affordable.

        Arguments:
            weight: Of the family's shape.
            left: A guess of the largest left singular vector; the bound holds for any.
        """


def broadcast_bias(bias: Tensor, ndim: int) -> Tensor:
    """A bias ``(C,)``, or one for each sample ``(B, C)`` or pixel ``(B, C, H, W)``, shaped to add
    to ``ndim`` dimensions."""
    return bias if bias.ndim > 2 else bias.reshape(*bias.shape, *[1] * (ndim - 2))
