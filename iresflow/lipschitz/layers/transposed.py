r"""The transpose of the layer before it: what makes the Jacobian of a branch symmetric.

:math:`g(x) = W^\top S \phi(W x + b) + b'` with signs :math:`S = \operatorname{diag}(\pm 1)` has
the Jacobian :math:`W^\top S D W`, :math:`D = \operatorname{diag} \phi'(W x + b)`. It is symmetric,
and its eigenvalues lie within :math:`|W|^2` times the slopes of :math:`\phi`: for slopes in [0, 1]
and signs of -1 alone in :math:`[-|W|^2, 0]`, where x + g(x) is a step down a convex potential.
With both signs it may stretch and compress.

References:
    A Dynamical System Perspective for Lipschitz Neural Networks (Meunier et al., 2022), section
    3.2: https://arxiv.org/abs/2110.12690. A Unified Algebraic Perspective on Lipschitz Neural
    Networks (Araujo et al., 2023): https://arxiv.org/abs/2303.03169
"""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from iresflow.lipschitz.bounds.base import Bound, LipschitzMap
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.form import Alone, Bounds

__all__ = ["Transposed"]

DUAL: Mapping[float, float] = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}
"""The norm that is dual to a p-norm: the transpose maps between the duals, with the same norm."""


@final
class Transposed(nn.Module, LipschitzMap):
    r"""The layer ``u -> W^T S u + b``, where the layer before it is ``x -> W x + b``.

    Its weight is that layer's, so it holds a bias alone.

    Arguments:
        layer: The layer before it.
        outputs: Entries of its bias: the inputs of that layer.
        signs: The diagonal of S, 1 or -1 for each output of that layer.

    Attributes:
        family: What computes with its weight: the transpose of a convolution with stride 1 that is
            padded by zeros or round the image is such a convolution too.

    Raises:
        ValueError: the layer's transpose is no such layer.
    """

    signs: Tensor

    def __init__(self, layer: NormalizedLayer, outputs: int, signs: Tensor) -> None:
        super().__init__()
        if not layer.transposes:
            raise ValueError(
                "a symmetric branch takes dense layers, or convolutions with stride 1 and zero or "
                f"circular padding, got {layer}"
            )
        self._layer = (layer,)  # not a part of this one: its weight is in a state once
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("signs", signs.to(self.bias.dtype), persistent=False)

    @property
    def family(self) -> NormalizedLayer:
        return self._layer[0]

    def transpose(self, weight: Tensor) -> Tensor:
        """The weight that acts, from that of the layer before."""
        weight = weight.transpose(0, 1).contiguous()
        signs = self.signs.to(weight.dtype)
        if weight.ndim == 2:
            return weight * signs
        return weight.flip(2, 3) * signs[:, None, None]

    def bound(self, domain: float = 2.0, codomain: float = 2.0) -> Bound:
        """As of the layer before, between the dual norms."""
        return self.bounds()[domain, codomain]

    def bounds(self) -> Bounds:
        """As `NormalizedLayer.bounds`. Signs change no p-norm."""
        return {(DUAL[q], DUAL[p]): bound for (p, q), bound in self.family.bounds().items()}

    def bounds_after(self, activation: Activation | None) -> Bounds:
        """As `NormalizedLayer.bounds_after`."""
        return Alone().bounds_after(self.bounds(), activation)
