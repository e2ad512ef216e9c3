r"""Estimates of an operator's norm, from below.

Each starts from a left vector, and overwrites it by the one that it ends with: the next estimate,
of a weight that has moved a little, starts warm. The results are norms of A times a unit vector,
so none exceeds the norm of A, but for rounding.
"""

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from iresflow.ambient import keeps_arithmetic, own_arithmetic
from iresflow.lanczos import LanczosProcess
from iresflow.lipschitz.layers.operator import OperatorFamily
from iresflow.tensors import transformed
from iresflow.threads import threads_for

if find_spec("iresflow.lipschitz.passes.native") is not None:
    from iresflow.lipschitz.passes.native.norm import native_norm
else:  # the folder may be missing

    def native_norm(weight: Tensor, left: Tensor) -> Tensor | None:
        """None: there are none."""
        return None


__all__ = ["bidiagonalization", "lanczos", "normalized", "power_iteration"]

BASIS = 8
"""Vectors of a bidiagonalisation."""

SQUARINGS = 8
"""Of a small matrix, whose power then is its largest eigenvector's."""

STEPS = 40
"""Steps of Lanczos' method at most."""

FEWEST = 4
"""Steps at least: a warm start holds little of the directions that have grown since."""

SETTLED = 1e-4
"""Relative growth of the norm in one step at which Lanczos' method ends."""


def power_iteration(
    family: OperatorFamily, weight: Tensor, left: Tensor, iterations: int
) -> Tensor:
    """The norm by power iteration, a scalar that is differentiable in the weight.

    Arguments:
        family: Whose operator A is measured.
        weight: Which one.
        left: Where to start, a vector of the range; overwritten.
        iterations: With the operator and its adjoint.
    """
    frozen = weight.detach()
    with torch.no_grad():
        multiply, adjoint = family.operator(frozen), family.adjoint(frozen)
        u = left.unsqueeze(0)
        for _ in range(iterations - 1):
            u = normalized(multiply(adjoint(u)))
        right = normalized(adjoint(u))
        image = multiply(right)
    return _norm(family, weight, right, image, left)


def bidiagonalization(family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
    r"""The norm by steps of Golub and Kahan's bidiagonalisation; otherwise as power iteration.

    It goes on from the left vector u, or where the domain of A is the smaller side, from
    :math:`A^\top u`. Lanczos' method makes an orthonormal basis of what powers of
    :math:`A A^\top` or :math:`A^\top A` make of that (Golub and Kahan, 1965), and the largest
    eigenvector of the tridiagonal matrix that stands for them there, by powers of that matrix.
    Many singular values of a trained layer are near its largest, and `BASIS` vectors tell them
    apart where two steps of power iteration don't.
    """
    native = native_norm(weight, left) if family.plain else None
    if native is not None:
        return native
    frozen = weight.detach()
    with torch.no_grad():
        multiply, adjoint = family.operator(frozen), family.adjoint(frozen)
        u = left.unsqueeze(0)
        start, domain = _smaller(adjoint(u), u)
        first, second = (multiply, adjoint) if domain else (adjoint, multiply)
        process = LanczosProcess(start, BASIS)
        for vector in process:
            process.take(second(first(vector)))
        found = process.combined(_leading(process.matrix))
        right = found if domain else normalized(adjoint(found))
        image = multiply(right)
    return _norm(family, weight, right, image, left)


@torch.no_grad()
def lanczos(family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
    r"""The norm by Lanczos' method, until it has settled; without a gradient.

    As `bidiagonalization`, but for the number of vectors. NaN for a weight that is not finite.
    Arguments as in `power_iteration`.
    """
    weight = weight.detach()
    work = 2 * weight.numel() * left[0].numel()
    # The same number in whatever surroundings it is first asked for.
    with threads_for(work), own_arithmetic():
        multiply, adjoint = family.operator(weight), family.adjoint(weight)
        u = left.unsqueeze(0)
        start, domain = _smaller(adjoint(u), u)
        process, gram = LanczosProcess(start, STEPS), family.gram(weight, domain)
        norm, top = 0.0, torch.ones(1, dtype=torch.float64)
        for vector in process:
            process.take(gram(vector))
            if not math.isfinite(float(process.matrix[-1, -1])):
                return weight.new_tensor(math.nan)
            values, vectors = torch.linalg.eigh(process.matrix.cpu())
            before, norm, top = norm, math.sqrt(max(0.0, float(values[-1]))), vectors[:, -1]
            if len(top) >= FEWEST and norm - before <= SETTLED * norm:
                break
        found = process.combined(top)
        right = normalized(found if domain else adjoint(found))
        return _norm(family, weight, right, multiply(right), left)


def _smaller(v: Tensor, u: Tensor) -> tuple[Tensor, bool]:
    """The smaller one of a vector of the domain and one of the range, and whether it is the first.

    Krylov spaces are made of it.
    """
    return (v, True) if v.numel() <= u.numel() else (u, False)


def _leading(matrix: Tensor) -> Tensor:
    """The eigenvector of the largest eigenvalue of a small matrix, by its powers; or zeros."""
    for _ in range(SQUARINGS):
        matrix = matrix / matrix.trace().clamp_min(_tiny(matrix))
        matrix = matrix @ matrix
    # From the first vector: among equal singular values, the left vector stays where it is.
    return normalized(matrix[0])


def normalized(x: Tensor) -> Tensor:
    """x over its Euclidean norm; zero stays zero."""
    return x / torch.linalg.vector_norm(x).clamp_min(_tiny(x))


def _norm(
    family: OperatorFamily, weight: Tensor, right: Tensor, image: Tensor, left: Tensor
) -> Tensor:
    """The norm of a unit vector's image, with the weight's gradient; that is the next start."""
    u = normalized(image)
    norm = (u * image).sum()
    with torch.no_grad():
        # From the zero vector, that of a zero weight, the iteration would never come back, nor
        # from one of NaN.
        left.copy_(torch.where(norm > 0, u.squeeze(0), left))
    if transformed():
        return (u * family.operator(weight)(right)).sum()
    return _Norm.apply(weight, family, right, u, norm)


@keeps_arithmetic
class _Norm(torch.autograd.Function):
    r""":math:`u^\top A v` for the singular vectors u and v, which it holds constant."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        family: OperatorFamily,
        right: Tensor,
        left: Tensor,
        norm: Tensor,
    ) -> Tensor:
        ctx.family = family
        ctx.save_for_backward(right, left)
        return norm.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        right, left = ctx.saved_tensors
        return (grad * ctx.family.weight_gradient(right, left), None, None, None, None)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
