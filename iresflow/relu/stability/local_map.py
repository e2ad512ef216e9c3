r"""A network on the polytope round a point, where it is affine.

On the polytope of inputs with the same active units, a network is affine (thesis, section 3.4):
:math:`F(x) = A_P x + b_P`, :math:`A_P = A_L D_{L-1} A_{L-1} \cdots D_1 A_1`, where
:math:`D_l` holds the slopes of the activations. A *stage* is a place in that chain: after an
affine map (the pre-activation), or after an activation.

Zero singular values are directions that the network is invariant to, locally; small ones are
directions that are nearly lost. The condition number is that of the non-zero ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.relu.networks.network import Layer, Network

__all__ = [
    "LocalMap",
    "Part",
    "Stage",
    "image_window",
    "restrict_to_polytope",
]


@final
@dataclass(frozen=True)
class Stage:
    """A place in the chain.

    Attributes:
        layer: Number of the layer, from 0.
        activated: Whether after its activation, else before.
        size: Entries of the vectors there.
    """

    layer: int
    activated: bool
    size: int

    def __str__(self) -> str:
        return f"layer {self.layer + 1}, {'after' if self.activated else 'before'} its activation"


@final
@dataclass(frozen=True, eq=False)
class LocalMap:
    """A network on the polytope round a point, where it is affine.

    Attributes:
        network: The network.
        point: The point x, flat, ``(n,)``.
        slopes: Of each layer's activations at the point, ``(m_l,)``.
        columns: The entries of x that are moved, integers ``(c,)``: all, or those of a window.
        margin: The smallest absolute pre-activation before an activation: 0 says that the point
            lies on the border of its polytope.
    """

    network: Network
    point: Tensor
    slopes: tuple[Tensor, ...]
    columns: Tensor
    margin: float

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages; a layer without activation has the one before it only."""
        return tuple(
            Stage(number, activated, layer.affine.out_size)
            for number, layer in enumerate(self.network.layers)
            for activated in ([False, True] if layer.slope != 1 else [False])
        )

    def product(self, v: Tensor, stage: Stage) -> Tensor:
        """The matrix of a stage times directions: ``(B, c)`` to ``(B, m)``."""
        moved = v.new_zeros(len(v), self.network.in_size)
        moved[:, self.columns] = v
        for _, part in self.parts(stage):
            moved = part.forward(moved)
        return moved

    def adjoint(self, u: Tensor, stage: Stage) -> Tensor:
        """Its transpose times directions: ``(B, m)`` to ``(B, c)``."""
        for _, part in reversed(list(self.parts(stage))):
            u = part.backward(u)
        return u[:, self.columns]

    def matrices(self) -> Iterator[tuple[Stage, Tensor]]:
        """The matrix ``(m, c)`` of each stage, one after the other."""
        moved = self.directions()
        for stage, part in self.parts():
            moved = part.forward(moved)
            yield stage, moved.mT

    def matrix(self, stage: Stage) -> Tensor:
        """The matrix ``(m, c)`` of one stage."""
        eye = torch.eye(len(self.columns), dtype=torch.float64)
        return self.product(eye, stage).mT

    def directions(self) -> Tensor:
        """One unit vector ``(n,)`` for each entry that is moved, ``(c, n)``."""
        moved = self.point.new_zeros(len(self.columns), self.network.in_size)
        moved[torch.arange(len(self.columns)), self.columns] = 1
        return moved

    def parts(self, last: Stage | None = None) -> Iterator[tuple[Stage, "Part"]]:
        """The factors of the chain from the input on, up to a stage or to the end."""
        for at in self.stages:
            yield at, Part(self.network.layers[at.layer], self.slopes[at.layer], at.activated)
            if at == last:
                return


@final
@dataclass(frozen=True, eq=False)
class Part:
    """One factor of the chain: a layer's affine map, or the slopes of its activations.

    Attributes:
        layer: The layer.
        slopes: Of its activations, ``(m,)``.
        activated: Whether it is they, else the affine map.
    """

    layer: Layer
    slopes: Tensor
    activated: bool

    def forward(self, v: Tensor) -> Tensor:
        """The factor times directions."""
        return v * self.slopes if self.activated else self.layer.affine.product(v)

    def backward(self, u: Tensor) -> Tensor:
        """Its transpose times directions."""
        return u * self.slopes if self.activated else self.layer.affine.adjoint(u)


def restrict_to_polytope(network: Network, x: Tensor, columns: Tensor | None = None) -> LocalMap:
    """The network on the polytope that holds x; exact, not an approximation.

    Arguments:
        network: The network.
        x: One input, ``(*in_shape)`` or ``(n,)``.
        columns: Entries of the flat input that are moved, such as `image_window`; None for all.

    Raises:
        ValueError: an input of another size or not finite, or columns that are not there.
    """
    flat = network.flatten(x.reshape(1, -1))
    every = torch.arange(network.in_size)
    moved = every if columns is None else columns
    if moved.dim() != 1 or not len(moved) or not bool(torch.isin(moved, every).all()):
        raise ValueError(f"columns must be numbers from 0 to {network.in_size - 1}, one at least")
    slopes, margin = [], float("inf")
    for layer, (z, _) in zip(network.layers, network.activations(flat), strict=True):
        slopes.append(layer.slopes(z[0]))
        if layer.slope != 1:
            margin = min(margin, float(z.abs().min()))
    return LocalMap(network, flat[0], tuple(slopes), moved, margin)


def image_window(shape: tuple[int, ...], side: int) -> Tensor:
    """The flat entries of the central square of images (C, H, W), all channels, ``(c,)``.

    Raises:
        ValueError: not the shape of images, or a window that is larger than they are.
    """
    if len(shape) != 3 or not 1 <= side <= min(shape[1:]):
        raise ValueError(f"a window of side {side} of images of shape {shape}; it must fit inside")
    channels, height, width = shape
    numbers = torch.arange(channels * height * width).reshape(shape)
    top, left = (height - side) // 2, (width - side) // 2
    return numbers[:, top : top + side, left : left + side].flatten()
