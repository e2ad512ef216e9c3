"""Two-sided bounds of quadratic forms by Lanczos' method: Gauss and Gauss-Radau quadrature."""

import torch
from torch import Tensor

from iresflow.linearization import Jacobian
from iresflow.tensors import dot, norms, spread

__all__ = ["resolvent_bounds"]


@torch.no_grad()
def resolvent_bounds(
    jacobian: Jacobian, probes: Tensor, shift: float, steps: int
) -> tuple[Tensor, Tensor]:
    r"""Bounds of :math:`v^\top (I + J^\top J / s)^{-1} v` for probes v, in the mean over them.

    Lanczos' method for :math:`J^\top J`, with a basis that is kept orthogonal in full. The
    derivatives of 1 / (1 + a / s) by an eigenvalue a alternate in sign. So Gauss quadrature is
    below the form, and that of Gauss and Radau with a node at 0, below all eigenvalues, is above
    it (Golub and Meurant, 1994, theorems 3.2 and 3.3).

    Arguments:
        jacobian: Products with J at B samples.
        probes: ``(K, B, *event)``.
        shift: s, above 0.
        steps: Dimension of the Krylov spaces.

    Returns:
        Lower and upper bounds ``(B,)`` float64.
    """
    sizes = norms(probes)
    v = probes / spread(sizes, probes)
    basis, diagonal, beside = [v], list[Tensor](), list[Tensor]()
    for _ in range(min(steps, probes[0, 0].numel())):
        image = jacobian.jvp(basis[-1])
        diagonal.append(dot(image, image).double())
        w = jacobian.vjp(image)
        for _ in range(2):  # once leaves what rounding has put back
            for vector in basis:
                w = w - spread(dot(vector, w), w) * vector
        length = norms(w)
        beside.append(length.double())
        tiny = torch.finfo(w.dtype).tiny
        basis.append(w / spread(length.clamp_min(tiny), w))
    alpha, beta = torch.stack(diagonal, -1), torch.stack(beside, -1)  # (K, B, steps)
    weight = sizes.double().square()
    low, high = (
        (weight * _first_entry(tridiagonal, shift)).mean(0)
        for tridiagonal in (_tridiagonal(alpha, beta[..., :-1]), _with_node_at_zero(alpha, beta))
    )
    return low, torch.maximum(low, high)


def _tridiagonal(alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.diag_embed(alpha) + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)


def _with_node_at_zero(alpha: Tensor, beta: Tensor) -> Tensor:
    """The matrix of one more row whose last entry gives it an eigenvalue of 0 (Golub, 1973)."""
    inner = _tridiagonal(alpha, beta[..., :-1])
    end = torch.zeros_like(alpha)
    end[..., -1] = beta[..., -1].square()
    last = torch.linalg.solve(inner, end[..., None])[..., -1, :]
    return _tridiagonal(torch.cat([alpha, last], -1), beta)


def _first_entry(matrix: Tensor, shift: float) -> Tensor:
    """The first entry of the inverse of I + T / s."""
    size = matrix.shape[-1]
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    first = eye[:, :1].expand(*matrix.shape[:-1], 1)
    return torch.linalg.solve(eye + matrix / shift, first)[..., 0, 0]
