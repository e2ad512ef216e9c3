r"""Self-adjoint operators, which an invertible residual network can be near to.

A residual block :math:`x + g(x)` with :math:`\operatorname{Lip}(g) \le L < 1` can be near an
operator K with :math:`|K - I| \le 1`: it has to map a space to itself, and a self-adjoint K has a
spectrum around 1. Here it lies in [0, 1]. Any linear operator A has such a K, that of its normal
equations, :math:`A^* A x = A^* y` (Arndt et al., 2023, https://arxiv.org/abs/2306.01335).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.inverse_problems.operators import LinearOperator
from iresflow.streams import NORMAL, Stream, draw
from iresflow.tensors import wide_norm

__all__ = ["SelfAdjoint"]

Map = Callable[[Tensor], Tensor]

STEPS = 40
"""Of Lanczos, by which the ends of a spectrum are looked for: they settle first."""

SLACK = 100.0
"""What rounding may add to a product, in units of eps and of the norms that are multiplied."""


@final
@dataclass(frozen=True, eq=False)
class SelfAdjoint:
    r"""A self-adjoint K with a spectrum in [0, 1], as two steps :math:`K x = B A x`.

    A maps x to what is measured, and B what is measured to what K x is compared with. Made by
    `of`, where A is such an operator itself and B the identity; or by `normal`, where
    :math:`B = A^* / |A|^2`.

    Attributes:
        forward: A, from ``(N, *shape)`` to ``(N, *measured)``.
        back: B, from ``(N, *measured)`` to ``(N, *shape)``. A measurement goes through it before
            it is inverted.
        norm: Of A, estimated from below; 1 where K is A itself.
    """

    forward: Map
    back: Map
    norm: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """K x of ``(N, *shape)``."""
        return self.back(self.forward(x))

    def observed(self, x: Tensor, noise: float, stream: Stream | None = None) -> Tensor:
        r""":math:`B (A x + \eta)` with normal noise of a standard deviation, ``(N, *shape)``."""
        y = self.forward(x)
        drawn = draw(NORMAL, y.shape, stream, batch=0, device=y.device, dtype=y.dtype)
        return self.back(y + noise * drawn)

    @staticmethod
    def of(
        operator: LinearOperator,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "SelfAdjoint":
        """An operator A that is self-adjoint with a spectrum in [0, 1] already.

        Arguments:
            operator: A.
            dtype: The type of float that it is tried in; None for PyTorch's default.
            device: Where it is tried.

        Raises:
            ValueError: A is not its own adjoint, or has an eigenvalue outside of [0, 1]. The
                latter is proven, by Rayleigh quotients; that there is none is not.
        """
        start = _random(operator.shape, dtype, device)
        tol = SLACK * torch.finfo(start.dtype).eps
        if operator.measured != operator.shape or not _agree(
            operator(start), operator.adjoint(start), tol
        ):
            raise ValueError("the operator is not its own adjoint: take SelfAdjoint.normal")
        low, high = _extreme_eigenvalues(operator, start)
        if high > 1 + tol:
            raise ValueError(
                f"the operator has an eigenvalue of {high:.6g}, and allowed is 1: divide it (and "
                "what is measured) by its norm"
            )
        if low < -tol:
            raise ValueError(
                f"the operator has a negative eigenvalue, {low:.4g}: take SelfAdjoint.normal"
            )
        return SelfAdjoint(operator, _same)

    @staticmethod
    def normal(
        operator: LinearOperator,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "SelfAdjoint":
        r"""The operator :math:`A^* A / |A|^2` of the normal equations of any A.

        Raises:
            ValueError: A is zero.

        Arguments: as `of`.
        """
        start = _random(operator.shape, dtype, device)
        _, high = _extreme_eigenvalues(lambda x: operator.adjoint(operator(x)), start)
        if not high > 0:
            raise ValueError("the operator is zero, so that nothing can be told from its data")
        return SelfAdjoint(operator, lambda y: operator.adjoint(y) / high, high**0.5)


def _same(y: Tensor) -> Tensor:
    return y


def _agree(image: Tensor, other: Tensor, tol: float) -> bool:
    return bool(wide_norm(image - other) <= tol * wide_norm(image))


def _random(
    shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device | str
) -> Tensor:
    """One normal sample, the same in every call; no stream of the caller moves."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    return drawn.to(device, dtype or torch.get_default_dtype())


@torch.no_grad()
def _extreme_eigenvalues(operator: Map, start: Tensor) -> tuple[float, float]:
    """Rayleigh quotients near the ends of a self-adjoint operator's spectrum, from inside it.

    Those of Lanczos with full orthogonalisation (Golub and Van Loan, section 10.1).
    """
    basis = [start / start.norm()]
    images = []
    for _ in range(min(STEPS, start.numel())):
        image = operator(basis[-1])
        images.append(image)
        rest = image
        for _ in range(2):  # twice is enough
            for known in basis:
                rest = rest - (rest * known).sum() * known
        if not float(rest.norm()) > SLACK * torch.finfo(rest.dtype).eps * float(image.norm()):
            break  # the space is invariant
        basis.append(rest / rest.norm())
    q, k = (torch.cat(v).flatten(1).double() for v in (basis[: len(images)], images))
    projected = q @ k.mT
    values = torch.linalg.eigvalsh((projected + projected.mT) / 2)
    return float(values[0]), float(values[-1])
