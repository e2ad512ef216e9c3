"""What an ordinary ReLU network throws away: a wing of its own, which knows no flow.

The methods work on any ``torch.nn.Sequential`` of linear layers, convolutions, ReLU and LeakyReLU
(`iresflow.relu.networks`), and each module can be imported alone. They train nothing; the papers'
experiments, which do, are in `experiments/relu` of the source checkout.
"""

from iresflow.relu.attack import InnerProduct, Nearest, invariance_attack
from iresflow.relu.bias import InjectivityPenalty, estimate_bias, maximal_bias
from iresflow.relu.descent import descend
from iresflow.relu.exploration import farthest_in_preimage, preimage_box, sample_preimage
from iresflow.relu.frames import active_frame, frame_bounds, frame_of_layer, is_alpha_rectifying
from iresflow.relu.inversion import invert_layer
from iresflow.relu.layer_programs import InfinityNorm, OneNorm, Relaxed
from iresflow.relu.layerwise import error_bounds, invert_network
from iresflow.relu.networks.network import Layer, Network, parse_network
from iresflow.relu.omnidirectional import is_omnidirectional
from iresflow.relu.preimage import Kind, Preimage, classify_preimage
from iresflow.relu.reconstruction import reconstruct
from iresflow.relu.sensing import observe_part, sense
from iresflow.relu.stability import extreme_singular_values, linearize, singular_values
from iresflow.relu.stages import stage_spectra
from iresflow.relu.systems import BOX, NON_NEGATIVE, Between

__all__ = [
    "BOX",
    "Between",
    "InfinityNorm",
    "InjectivityPenalty",
    "InnerProduct",
    "Kind",
    "Layer",
    "NON_NEGATIVE",
    "Nearest",
    "Network",
    "OneNorm",
    "Preimage",
    "Relaxed",
    "active_frame",
    "classify_preimage",
    "descend",
    "error_bounds",
    "estimate_bias",
    "extreme_singular_values",
    "farthest_in_preimage",
    "frame_bounds",
    "frame_of_layer",
    "invariance_attack",
    "invert_layer",
    "invert_network",
    "is_alpha_rectifying",
    "is_omnidirectional",
    "linearize",
    "maximal_bias",
    "observe_part",
    "parse_network",
    "preimage_box",
    "reconstruct",
    "sample_preimage",
    "sense",
    "singular_values",
    "stage_spectra",
]
