"""An ordinary network as layers x -> s(A x + b) with a piecewise linear activation s.

`iresflow.relu.networks.parsing` reads them from PyTorch's modules.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.relu.networks.affine import AffineMap

__all__ = ["Layer", "Network"]


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """x -> s(A x + b), where s(z) is z for z > 0, and ``slope`` z elsewhere.

    Attributes:
        name: Of the module that holds A, such as ``0`` or ``features.3``: its first linear or
            convolution layer, or where there is none, the first of its modules.
        affine: A and b, in float64.
        slope: 0 for ReLU, between for LeakyReLU, 1 where no activation follows.
    """

    name: str
    affine: AffineMap
    slope: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output: ``(B, n)`` to ``(B, m)``."""
        return self.activate(self.affine(x))

    def activate(self, z: Tensor) -> Tensor:
        """s at pre-activations of any shape."""
        return torch.where(z > 0, z, self.slope * z)

    def slopes(self, z: Tensor) -> Tensor:
        """The slope of s at pre-activations of any shape; at 0, that of the left side."""
        return torch.where(z > 0, z.new_ones(()), z.new_tensor(self.slope))

    @property
    def injective_activation(self) -> bool:
        """Whether s can be inverted, so that only A may lose something."""
        return self.slope > 0


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A chain of layers.

    Attributes:
        layers: From input to output, at least one.
    """

    layers: tuple[Layer, ...]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, before flattening."""
        return tuple(self.layers[0].affine.in_shape)

    @property
    def in_size(self) -> int:
        """Entries of one input."""
        return self.layers[0].affine.in_size

    @property
    def out_size(self) -> int:
        """Entries of one output."""
        return self.layers[-1].affine.out_size

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for a batch ``(B, *in_shape)`` or ``(B, n)``, as ``(B, m)``."""
        *_, (_, output) = self.activations(x)
        return output

    def activations(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pre-activation and output ``(B, m)`` of each layer, for a batch of inputs.

        Raises:
            ValueError: the inputs have another size, or hold values that are not finite.
        """
        x = self.flatten(x)
        for layer in self.layers:
            z = layer.affine(x)
            x = layer.activate(z)
            yield z, x

    def flatten(self, x: Tensor) -> Tensor:
        """A batch of inputs as float64 ``(B, n)``. Errors: see `activations`."""
        flat = x.detach().to("cpu", torch.float64).flatten(1) if x.dim() > 1 else x
        if flat.dim() != 2 or flat.shape[1] != self.in_size:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}; allowed is (B, {self.in_size}) or "
                f"(B, {', '.join(map(str, self.in_shape))})"
            )
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("inputs hold values that are not finite")
        return flat
