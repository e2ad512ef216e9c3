"""The networks of the papers, initialised as by Keras, which they were trained with."""

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["CIFAR_CHANNELS", "cifar_network", "mlp"]

CIFAR_CHANNELS = {
    "WideCIFAR": (32, 64, 64, 32, 32, 64),
    "ThinCIFAR": (32, 32, 16, 16, 16, 32),
}
"""Feature maps of the six convolutions (thesis, table 3.1)."""

CIFAR_STRIDES = (1, 2, 1, 1, 1, 2)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Dense layers with ReLU between them, for inputs of any shape.

    Arguments:
        sizes: Of the input, of each hidden layer, and the number of classes.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return _as_keras(nn.Sequential(*layers[:-1]))


def cifar_network(
    channels: Sequence[int], shape: tuple[int, ...], classes: int, dense: int = 512
) -> nn.Sequential:
    """Six 3 x 3 convolutions, two of stride 2, and two dense layers (thesis, table 3.1).

    Arguments:
        channels: Feature maps of each convolution.
        shape: (C, H, W) of the images.
        classes: Number of classes.
        dense: Units of the hidden dense layer.
    """
    layers: list[nn.Module] = []
    inputs, side = shape[0], torch.Size(shape[1:])
    for outputs, stride in zip(channels, CIFAR_STRIDES, strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU()]
        inputs, side = outputs, torch.Size(math.ceil(s / stride) for s in side)
    layers += [nn.Flatten(), nn.Linear(inputs * side.numel(), dense), nn.ReLU()]
    return _as_keras(nn.Sequential(*layers, nn.Linear(dense, classes)))


def _as_keras(module: nn.Sequential) -> nn.Sequential:
    """Glorot's uniform distribution for weights, and biases of zero."""
    for part in module:
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
    return module
