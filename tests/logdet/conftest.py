import pytest
import torch
from helpers import (
    MatrixLinearization,
    branch_shape,
    contractions,
    dense_jacobian,
    small_branch,
    symmetric_branch,
)


class Case:
    """Something to linearize, its Jacobians and exact log-determinants, all ``(B, ...)``."""

    def __init__(self, linearize, jacobian):
        self.linearize = linearize
        self.jacobian = jacobian
        self.identity = torch.eye(jacobian.shape[-1])
        self.log_det = torch.linalg.slogdet(self.identity + jacobian).logabsdet


@pytest.fixture(params=["matrix", "conv", "dense", "symmetric"])
def case(request):
    """Matrices with |J| = 0.6, as in trained blocks, and the branches with their small ones."""
    if request.param == "matrix":
        matrices = contractions(0.6)
        return Case(lambda: MatrixLinearization(matrices, 0.7), matrices)
    if request.param == "symmetric":
        branch, x = symmetric_branch("conv"), torch.randn(3, *branch_shape("conv"))
    else:
        branch = small_branch(request.param)
        x = torch.randn(3, *branch_shape(request.param))
    return Case(lambda: branch.linearize(x), dense_jacobian(branch, x))


@pytest.fixture
def matrices():
    """Matrices with |J| = 0.6, and the gradients of their log-determinants."""
    matrices = contractions(0.6).requires_grad_()
    exact = torch.linalg.inv(torch.eye(matrices.shape[-1]) + matrices.detach()).mT
    return matrices, exact
