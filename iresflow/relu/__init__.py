"""What an ordinary ReLU network throws away: a wing of its own, which knows no flow.

`linearize` and `measure_stages` take any network; the exact methods any whose ``forward`` is a
chain of affine maps and piecewise linear activations, or the chain that it begins with
(`iresflow.relu.networks`). Each part can be imported alone. They train nothing; the papers'
experiments, which do, are in `experiments/relu` of the source checkout.
"""

from iresflow.relu.frames.active_rows import active_rows, frame_bounds, frame_on_box
from iresflow.relu.frames.bias_estimation import InjectivityPenalty, estimate_bias, maximal_bias
from iresflow.relu.frames.reconstruction import reconstruct
from iresflow.relu.inversion.error_bounds import error_bounds
from iresflow.relu.inversion.gradient_descent import descend
from iresflow.relu.inversion.layer_inversion import invert_layer
from iresflow.relu.inversion.layer_programs import InfinityNorm, OneNorm, Relaxed
from iresflow.relu.inversion.measurements import observe_part, sense
from iresflow.relu.inversion.network_inversion import invert_network
from iresflow.relu.networks.dense import dense_layer
from iresflow.relu.networks.linearize import NetworkLinearization, linearize
from iresflow.relu.networks.network import Layer, Network
from iresflow.relu.networks.parsing import parse_network
from iresflow.relu.preimages.attack import InnerProduct, Nearest, invariance_attack
from iresflow.relu.preimages.classification import Kind, Preimage, classify_preimage
from iresflow.relu.preimages.constraints import BOX, NON_NEGATIVE, Between
from iresflow.relu.preimages.extent import farthest_in_preimage, preimage_box, sample_preimage
from iresflow.relu.preimages.omnidirectional import is_omnidirectional
from iresflow.relu.ranks import Spectrum, singular_values
from iresflow.relu.stability.stage_spectra import (
    StageSpectra,
    extreme_singular_values,
    measure_stages,
)

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
    "NetworkLinearization",
    "OneNorm",
    "Preimage",
    "Relaxed",
    "Spectrum",
    "StageSpectra",
    "active_rows",
    "classify_preimage",
    "dense_layer",
    "descend",
    "error_bounds",
    "estimate_bias",
    "extreme_singular_values",
    "farthest_in_preimage",
    "frame_bounds",
    "frame_on_box",
    "invariance_attack",
    "invert_layer",
    "invert_network",
    "is_omnidirectional",
    "linearize",
    "maximal_bias",
    "measure_stages",
    "observe_part",
    "parse_network",
    "preimage_box",
    "reconstruct",
    "sample_preimage",
    "sense",
    "singular_values",
]
