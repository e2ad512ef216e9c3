"""Networks with a certified Lipschitz constant."""

from iresflow.lipschitz.bounds.base import Bound, LipschitzMap
from iresflow.lipschitz.bounds.modules import norm_bound
from iresflow.lipschitz.branch import Branch, ContextDim
from iresflow.lipschitz.branches import (
    LINKS,
    chained,
    concatenated,
    conv_branch,
    dense_branch,
    links_named,
    symmetric,
)
from iresflow.lipschitz.constraint import constrain
from iresflow.lipschitz.layers.activations import (
    ACTIVATIONS,
    ELU,
    Activation,
    CLipSwish,
    LipSwish,
    Sine,
    SineCosine,
    Softplus,
    Tanh,
    activation_named,
)
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.linear import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.layers.normalization import (
    NORMALIZATIONS,
    Bidiagonalization,
    Certified,
    Normalization,
    PowerIteration,
    Unlimited,
    normalization_named,
)
from iresflow.lipschitz.layers.padding import (
    PADDINGS,
    CircularPadding,
    Padding,
    ReflectPadding,
    ZeroPadding,
)
from iresflow.lipschitz.passes.kernels import compile_kernels, compiled_kernels
from iresflow.lipschitz.scaling import DiagonalScaling

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "LINKS",
    "NORMALIZATIONS",
    "PADDINGS",
    "Activation",
    "Bidiagonalization",
    "Bound",
    "Branch",
    "CLipSwish",
    "Certified",
    "CircularPadding",
    "ContextDim",
    "DiagonalScaling",
    "LipSwish",
    "LipschitzMap",
    "Normalization",
    "NormalizedConv2d",
    "NormalizedDense",
    "NormalizedLayer",
    "Padding",
    "PowerIteration",
    "ReflectPadding",
    "Sine",
    "SineCosine",
    "Softplus",
    "Tanh",
    "Unlimited",
    "ZeroPadding",
    "activation_named",
    "chained",
    "compile_kernels",
    "compiled_kernels",
    "concatenated",
    "constrain",
    "conv_branch",
    "dense_branch",
    "links_named",
    "norm_bound",
    "normalization_named",
    "symmetric",
]
