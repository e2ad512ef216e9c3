"""Random linear layers of PyTorch, and their matrices."""

import math
import random

import torch
from torch import nn

MODES = ("zeros", "circular", "reflect", "replicate")


def matrix_of(module, size, channels):
    """The matrix of a layer that has no bias, by PyTorch's own forward pass."""
    basis = torch.eye(channels * math.prod(size)).view(-1, channels, *size)
    with torch.no_grad():
        return module(basis).flatten(1).mT


def spectral(matrix):
    """The largest singular value, of a matrix that is scaled first: LAPACK squares its entries."""
    largest = float(matrix.abs().max())
    return largest and largest * float(torch.linalg.matrix_norm(matrix / largest, ord=2))


def draw(seed):
    """A layer of any kind, the size of its input, and its channels."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    transposed, axes, groups = rng.random() < 0.3, rng.choice((1, 2, 2)), rng.choice((1, 1, 2, 3))

    def each(*values):
        return tuple(rng.choice(values) for _ in range(axes))

    size = each(*range(4, 10))
    channels, outputs = groups * rng.randint(1, 3), groups * rng.randint(1, 3)
    taps, stride, dilation = each(1, 2, 3, 3, 4, 5), each(1, 1, 2, 3), each(1, 1, 2, 3)
    padding = each(0, 1, 2)
    if transposed:
        extra = tuple(rng.randrange(max(pair)) for pair in zip(stride, dilation, strict=True))
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d)[axes - 1]
        shape = (channels, outputs, taps, stride, padding, extra, groups, False, dilation)
        module = kind(*shape)
    else:
        if max(stride) == 1 and rng.random() < 0.3:
            padding = rng.choice(("same", "valid"))
        kind = (nn.Conv1d, nn.Conv2d)[axes - 1]
        shape = (channels, outputs, taps, stride, padding, dilation, groups, False)
        module = kind(*shape, rng.choice(MODES))
    if rng.random() < 0.2:
        nn.init.ones_(module.weight)
    with torch.no_grad():
        module.weight *= rng.choice((1.0, 1.0, 1e-3, 1e100, 1e-180, 0.0))
    return module, size, channels
