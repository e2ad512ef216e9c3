"""What an ordinary ReLU network throws away: a wing of its own, which knows no flow.

The methods work on any ``torch.nn.Sequential`` of linear layers, convolutions, ReLU and LeakyReLU
(`iresflow.relu.network`), and each module can be imported alone; the figures of the papers are
drawn by `iresflow.relu.experiments`.
"""

from iresflow.relu.network import Layer, Network, parse_network

__all__ = ["Layer", "Network", "parse_network"]
