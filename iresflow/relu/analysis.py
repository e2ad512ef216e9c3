"""What a network's first layers throw away near an input, exactly: layers to be inverted."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.relu.networks.affine import DenseMap
from iresflow.relu.networks.network import Layer, Network
from iresflow.relu.networks.parsing import parse_network

__all__ = ["layers_on_polytope", "parse_first_layers"]


def parse_first_layers(module: nn.Module, in_shape: tuple[int, ...]) -> Network:
    """The whole network if it is a chain, or else the chain that it begins with.

    Raises:
        UnsupportedNetworkError: it begins with something else.
    """
    try:
        return parse_network(module, in_shape)
    except UnsupportedNetworkError as error:
        if error.until is None:
            raise
        return parse_network(module, in_shape, error.until)


def layers_on_polytope(network: Network, x: Tensor, entries: int) -> Iterator[Layer]:
    """For each depth, one layer that x passes just as it passes all layers down to there.

    What the first layer maps to its output at x is the preimage under one layer. Deeper, this is
    the part of the preimage that lies in the polytope of x, where the units of all layers before
    are on and off as they are there: the last layer's rows on the polytope, and rows that are
    below zero as long as the units before stay as they are.

    Arguments:
        network: The network.
        x: One input, ``(*in_shape)`` or flat.
        entries: Of the matrix at most: it ends before a deeper one.
    """
    flat = network.flatten(x.reshape(1, -1))
    rows, side = torch.eye(network.in_size, dtype=torch.float64), torch.zeros(network.in_size)
    kept, kept_side = rows[:0], side[:0].double()
    for number, (layer, (z, _)) in enumerate(
        zip(network.layers, network.activations(flat), strict=True)
    ):
        if number == 0:
            yield layer
        if (len(kept) + 2 * layer.affine.out_size) * network.in_size > entries:
            return
        rows = layer.affine.product(rows.mT).mT
        side = layer.affine(side[None].double())[0]
        if number > 0:
            # An activation that loses nothing: each row is an equation, by itself or its negative.
            both = torch.cat([rows, -rows]) if layer.injective_activation else rows
            shift = torch.cat([side, -side]) if layer.injective_activation else side
            affine = DenseMap(torch.cat([kept, both]), torch.cat([kept_side, shift]))
            yield Layer(layer.name, affine, 0.0)
        if layer.slope != 1:
            sign = torch.where(z[0] > 0, -1.0, 1.0).double()
            kept = torch.cat([kept, sign[:, None] * rows])
            kept_side = torch.cat([kept_side, sign * side])
        slopes = layer.slopes(z[0])
        rows, side = slopes[:, None] * rows, slopes * side
