"""Orthogonalised steps against the singular value decomposition and Adam's."""

import math

import pytest
import torch
from torch import nn

from iresflow.training.loop.muon import Muon, nearly_orthogonal


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (1, 7), (7, 1)])
def test_singular_vectors_stay_and_singular_values_become_nearly_one(shape):
    matrices = torch.randn(3, *shape)
    found = nearly_orthogonal(matrices)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ found @ v.mT
    values = rotated.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(rotated, torch.diag_embed(values), rtol=0, atol=1e-12)
    large = s > 0.01 * s.norm(dim=1, keepdim=True)
    assert large.any(1).all()
    assert 0.68 < values[large].min() and values[large].max() < 1.14
    # Any factor in front is no matter; and nothing is made of nothing.
    torch.testing.assert_close(nearly_orthogonal(1e-9 * matrices), found)
    assert not nearly_orthogonal(torch.zeros(1, *shape)).any()


def test_a_stretch_of_thirty_is_evened_out():
    """A step along the gradient would keep it."""
    left, right = (torch.linalg.qr(torch.randn(6, 6)).Q for _ in range(2))
    matrix = left @ torch.diag(torch.logspace(0, -1.5, 6, dtype=left.dtype)) @ right
    values = torch.linalg.svdvals(nearly_orthogonal(matrix[None])[0])
    assert values.max() / values.min() < 1.7


def test_matrices_and_kernels_take_orthogonal_steps_and_all_else_adams():
    torch.manual_seed(0)
    shapes = [(4, 6), (4, 6), (8, 3, 3, 3), (5,), (2, 3, 3), ()]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, 0.1, momentum=0.0)
    adam = torch.optim.AdamW(theirs, 0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(2):
        before = [p.detach().clone() for p in ours]
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        adam.step()
        for p, old in zip(ours[:3], before, strict=False):
            move = (old - p.detach()).flatten(1) / (0.1 * math.sqrt(max(p.flatten(1).shape)))
            expected = nearly_orthogonal(p.grad.flatten(1)[None])[0]
            torch.testing.assert_close(move, expected)
            size = (old - p.detach()).square().mean().sqrt()
            assert size == pytest.approx(0.1, rel=0.3)  # the rate
    for p, q in zip(ours[3:], theirs[3:], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_parameters_without_a_gradient_stay():
    with_one, without = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    with_one.grad = torch.randn(2, 3)
    Muon([with_one, without], 0.1).step()
    assert torch.equal(without, torch.ones(2, 3)) and not torch.equal(with_one, without)
    Muon([nn.Parameter(torch.ones(2, 3))], 0.1).step()  # all without
    Muon([nn.Parameter(torch.ones(3))], 0.1).step()
