"""The norm of a matrix: of dense layers, and of 1 x 1 convolutions."""

import math

import torch
from torch import Tensor

from iresflow.lipschitz.bounds.base import EPS, scaled

__all__ = ["matrix_norm"]


def matrix_norm(matrix: Tensor) -> tuple[Tensor, float]:
    """Upper bound of the largest singular value of a matrix ``(m, n)``, and an estimate of it.

    The bound is a float64 scalar with the gradient of :math:`|W v|` at the singular vector v of
    the largest singular value. The allowance, relative to the squared Frobenius norm F: each entry
    of the Gram matrix G is off by max(m, n) eps times the product of two columns' norms, together
    max(m, n) eps F at most; LAPACK's eigenvalues are those of a matrix that is off by a modest
    multiple of eps times the norm of G, taken here as 4 min(m, n) eps F.

    Cost: O(max(m, n) min(m, n)^2).
    """
    moving, power = scaled(matrix)
    frozen = moving.detach()
    if power in (0.0, math.inf):
        return frozen.new_tensor(power), power
    tall = frozen if frozen.shape[0] >= frozen.shape[1] else frozen.mT
    gram = tall.mT @ tall
    slack = 4 * (sum(frozen.shape) + 4) * EPS * float(gram.trace())
    if not (torch.is_grad_enabled() and matrix.requires_grad):
        square = float(torch.linalg.eigvalsh(gram)[-1])
        upper = math.sqrt(max(square, 0.0) + slack) * power * (1 + 4 * EPS)
        return frozen.new_tensor(upper), math.sqrt(max(square - slack, 0.0)) * power
    values, vectors = torch.linalg.eigh(gram)
    square, vector = float(values[-1]), vectors[:, -1]
    image = moving @ vector if tall is frozen else moving.mT @ vector
    norm = torch.linalg.vector_norm(image)
    upper = math.sqrt(max(square, 0.0) + slack) * (1 + 4 * EPS)
    return (norm - norm.detach() + upper) * power, math.sqrt(max(square - slack, 0.0)) * power
