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
from iresflow.lipschitz.layers.operator import Operator, OperatorFamily
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

ROUNDED = 256
"""In units of eps: how much of a vector is rounding, once a part of it has been taken away."""

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
        v = adjoint(u)
        domain = v.numel() <= u.numel()
        vector = _ritz_vector(family.gram(frozen, domain), v if domain else u)
        right = vector if domain else normalized(adjoint(vector))
        image = multiply(right)
    return _norm(family, weight, right, image, left)


def _ritz_vector(gram: Operator, rest: Tensor) -> Tensor:
    """The best vector of the Krylov space of a symmetric operator from a start."""
    shape, tiny = rest.shape, _tiny(rest)
    steps = min(BASIS, rest.numel())
    basis, tridiagonal = rest.new_zeros(steps, rest.numel()), rest.new_zeros(steps, steps)
    for step in range(steps):
        rest = rest.flatten()
        whole = torch.linalg.vector_norm(rest)
        for _ in range(2):  # once leaves what the next step's errors grow from
            along = basis[:step] @ rest
            rest = rest - along @ basis[:step]
            tridiagonal[:step, :step].diagonal()[-1:] += along[-1:]
        size = torch.linalg.vector_norm(rest)
        # What rounding alone has left is no direction: the basis ends there.
        size = torch.where(size > ROUNDED * torch.finfo(size.dtype).eps * whole, size, 0)
        if step:
            tridiagonal[step - 1, step] = tridiagonal[step, step - 1] = size
        basis[step] = rest * ((size > 0) / size.clamp_min(tiny))
        rest = gram(basis[step].view(shape))
    tridiagonal[-1, -1] = basis[-1] @ rest.flatten()
    for _ in range(SQUARINGS):
        tridiagonal = tridiagonal / tridiagonal.trace().clamp_min(tiny)
        tridiagonal = tridiagonal @ tridiagonal
    # From the first vector: among equal singular values, the left vector stays where it is.
    return (normalized(tridiagonal[0]) @ basis).view(shape)


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
