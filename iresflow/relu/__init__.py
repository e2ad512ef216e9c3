"""What an ordinary ReLU network throws away: a wing of its own, which knows no flow.

The methods work on any ``torch.nn.Sequential`` of linear layers, convolutions, ReLU and LeakyReLU
(`iresflow.relu.network`), and each module can be imported alone; the figures of the papers are
drawn by `iresflow.relu.experiments`.
"""

from iresflow.relu.attack import InnerProduct, Nearest, invariance_attack
from iresflow.relu.exploration import farthest_in_preimage, preimage_box, sample_preimage
from iresflow.relu.network import Layer, Network, parse_network
from iresflow.relu.omnidirectional import is_omnidirectional
from iresflow.relu.preimage import Kind, Preimage, classify_preimage
from iresflow.relu.stability import extreme_singular_values, linearize, singular_values
from iresflow.relu.systems import BOX, NON_NEGATIVE, Between

__all__ = [
    "BOX",
    "NON_NEGATIVE",
    "Between",
    "InnerProduct",
    "Kind",
    "Layer",
    "Nearest",
    "Network",
    "Preimage",
    "classify_preimage",
    "extreme_singular_values",
    "farthest_in_preimage",
    "invariance_attack",
    "is_omnidirectional",
    "linearize",
    "parse_network",
    "preimage_box",
    "sample_preimage",
    "singular_values",
]
