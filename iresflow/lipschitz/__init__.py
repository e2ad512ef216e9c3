"""Networks with a certified Lipschitz constant."""

from iresflow.lipschitz.activations import (
    ACTIVATIONS,
    ELU,
    Activation,
    CLipSwish,
    LipSwish,
    Softplus,
    Tanh,
)
from iresflow.lipschitz.bounds import Bound, LipschitzMap
from iresflow.lipschitz.kernels import compile_kernels
from iresflow.lipschitz.layers import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.nets import Branch, conv_branch, dense_branch
from iresflow.lipschitz.normalization import (
    NORMALIZATIONS,
    Bidiagonalization,
    Certified,
    Normalization,
    PowerIteration,
)
from iresflow.lipschitz.normalized import NormalizedLayer
from iresflow.lipschitz.padding import CircularPadding, Padding, ReflectPadding, ZeroPadding
from iresflow.lipschitz.snapshot import Snapshot

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "NORMALIZATIONS",
    "Activation",
    "Bidiagonalization",
    "Bound",
    "Branch",
    "CLipSwish",
    "Certified",
    "CircularPadding",
    "LipSwish",
    "LipschitzMap",
    "Normalization",
    "NormalizedConv2d",
    "NormalizedDense",
    "NormalizedLayer",
    "Padding",
    "PowerIteration",
    "Snapshot",
    "ReflectPadding",
    "Softplus",
    "Tanh",
    "ZeroPadding",
    "compile_kernels",
    "conv_branch",
    "dense_branch",
]
