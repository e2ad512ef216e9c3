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
    r"""The norm by two steps of Golub and Kahan's bidiagonalisation; otherwise as power iteration.

    From the left vector u, :math:`A^\top u` and :math:`A^\top A A^\top u` span a space of right
    vectors; in its orthonormal basis, A is a lower triangle of two columns, whose largest
    singular vector is known in closed form (Golub and Kahan, 1965).
    """
    native = native_norm(weight, left) if family.plain else None
    if native is not None:
        return native
    frozen = weight.detach()
    with torch.no_grad():
        multiply, adjoint = family.operator(frozen), family.adjoint(frozen)
        u = left.unsqueeze(0)
        first = adjoint(u)
        upper = torch.linalg.vector_norm(first)
        first = first / upper.clamp_min(_tiny(upper))
        beside = multiply(first) - upper * u
        below = torch.linalg.vector_norm(beside)
        beside = beside / below.clamp_min(_tiny(below))
        second = adjoint(beside)
        # Where the first vector was right already, the rest is rounding, along the first too.
        second = second - (first * second).sum() * first
        lower = torch.linalg.vector_norm(second)
        second = second / lower.clamp_min(_tiny(lower))
        # The top eigenvector of [[upper, below], [0, lower]] times its transpose.
        angle = torch.atan2(2 * below * lower, upper**2 + below**2 - lower**2) / 2
        right = normalized(angle.cos() * first + angle.sin() * second)
        image = multiply(right)
    return _norm(family, weight, right, image, left)


@torch.no_grad()
def lanczos(family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
    r"""The norm by Lanczos' method, until it has settled; without a gradient.

    The largest Ritz value of :math:`A^\top A` or :math:`A A^\top`, whichever is the smaller, in a
    Krylov space whose basis is kept orthogonal. NaN for a weight that is not finite. Arguments as
    in `power_iteration`.
    """
    weight = weight.detach()
    work = 2 * weight.numel() * left[0].numel()
    # The same number in whatever surroundings it is first asked for.
    with threads_for(work), own_arithmetic():
        return _lanczos(family, weight, left)


def _lanczos(family: OperatorFamily, weight: Tensor, left: Tensor) -> Tensor:
    multiply, adjoint = family.operator(weight), family.adjoint(weight)
    u = left.unsqueeze(0)
    v = adjoint(u)
    domain = v.numel() <= u.numel()
    vector = normalized(v if domain else u)
    shape, gram = vector.shape, family.gram(weight, domain)
    basis = vector.new_empty(min(STEPS, vector.numel()), vector.numel())
    tridiagonal = torch.zeros(len(basis), len(basis), dtype=torch.float64)
    norm, top = 0.0, torch.ones(1, dtype=torch.float64)
    for step in range(len(basis)):
        basis[step] = vector.flatten()
        image = gram(vector).flatten()
        tridiagonal[step, step] = float(image @ basis[step])
        if not math.isfinite(tridiagonal[step, step]):
            return weight.new_tensor(math.nan)
        values, vectors = torch.linalg.eigh(tridiagonal[: step + 1, : step + 1])
        before, norm, top = norm, math.sqrt(max(0.0, float(values[-1]))), vectors[:, -1]
        if step + 1 == len(basis) or (step + 1 >= FEWEST and norm - before <= SETTLED * norm):
            break
        span = basis[: step + 1]
        rest = image
        for _ in range(2):  # once leaves what the next step's errors grow from
            rest = rest - (span @ rest) @ span
        size = float(torch.linalg.vector_norm(rest))
        if size <= 8 * torch.finfo(rest.dtype).eps * norm**2:
            break
        tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = size
        vector = (rest / size).view(shape)
    ritz = (top.to(basis) @ basis[: len(top)]).view(shape)
    right = normalized(ritz if domain else adjoint(ritz))
    return _norm(family, weight, right, multiply(right), left)


def normalized(x: Tensor) -> Tensor:
    """x over its Euclidean norm; zero stays zero."""
    return x / torch.linalg.vector_norm(x).clamp_min(_tiny(x))


def _norm(
    family: OperatorFamily, weight: Tensor, right: Tensor, image: Tensor, left: Tensor
) -> Tensor:
    """The norm of a unit vector's image, with the weight's gradient; that is the next start."""
    u = normalized(image)
    with torch.no_grad():
        # From the zero vector, that of a zero weight, the iteration would never come back.
        left.copy_(torch.where(u.any(), u.squeeze(0), left))
    if transformed():
        return (u * family.operator(weight)(right)).sum()
    return _Norm.apply(weight, family, right, u, (u * image).sum())


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
