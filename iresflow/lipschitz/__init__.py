"""Networks with a certified Lipschitz constant."""

from iresflow.lipschitz.activations import ACTIVATIONS, ELU, Activation, LipSwish, Softplus, Tanh
from iresflow.lipschitz.bounds import Bound, LipschitzMap
from iresflow.lipschitz.layers import (
    NORMALIZATIONS,
    Certified,
    Normalization,
    NormalizedConv2d,
    NormalizedDense,
    NormalizedLayer,
    PowerIteration,
)
from iresflow.lipschitz.nets import Branch, conv_branch, dense_branch

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "NORMALIZATIONS",
    "Activation",
    "Bound",
    "Branch",
    "Certified",
    "LipSwish",
    "LipschitzMap",
    "Normalization",
    "NormalizedConv2d",
    "NormalizedDense",
    "NormalizedLayer",
    "PowerIteration",
    "Softplus",
    "Tanh",
    "conv_branch",
    "dense_branch",
]
