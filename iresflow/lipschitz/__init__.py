"""Networks with a certified Lipschitz constant."""

from iresflow.lipschitz.activations import ACTIVATIONS, ELU, Activation, LipSwish, Softplus, Tanh
from iresflow.lipschitz.bounds import Bound, LipschitzMap
from iresflow.lipschitz.layers import NormalizedConv2d, NormalizedDense, NormalizedLayer
from iresflow.lipschitz.nets import Branch, conv_branch, dense_branch

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "Activation",
    "Bound",
    "Branch",
    "LipSwish",
    "LipschitzMap",
    "NormalizedConv2d",
    "NormalizedDense",
    "NormalizedLayer",
    "Softplus",
    "Tanh",
    "conv_branch",
    "dense_branch",
]
