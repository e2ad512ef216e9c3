"""Which chains the compiled passes are made for."""

from collections.abc import Sequence

from torch import Tensor

from iresflow.lipschitz.layers.activations import (
    ELU,
    Activation,
    CLipSwish,
    LipSwish,
    Sine,
    SineCosine,
    Tanh,
)
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.concatenation import Beside, Identity
from iresflow.lipschitz.layers.linear import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.passes.links import Link
from iresflow.lipschitz.passes.native.library import SCALARS, is_plain

__all__ = ["kind_of", "suits"]

KINDS: dict[type[Activation], int] = {
    ELU: 1,
    Tanh: 2,
    LipSwish: 3,
    CLipSwish: 4,
    Sine: 5,
    SineCosine: 6,
}
"""``Kind`` of ``cpp/links.h``; 0 for none."""

BESIDE = 16
"""Added to the kind of an activation that stands beside its argument."""

KIND_OF_LAYER: dict[int, type[NormalizedLayer]] = {2: NormalizedDense, 4: NormalizedConv2d}
"""By the number of dimensions of a batch."""


def suits(links: Sequence[Link], x: Tensor) -> bool:
    """Whether the compiled passes are made for these links, at points like x."""
    tensors = [x, *(t for link in links for t in (link.weight, link.bias))]
    if x.dtype not in SCALARS or not all(is_plain(t) for t in tensors):
        return False
    channels = [x.shape[1] if x.ndim > 1 else 0, *(len(link.weight) for link in links)]
    if x.ndim not in KIND_OF_LAYER or any(
        link.weight.shape[1] != link.width * count
        for link, count in zip(links, channels, strict=False)
    ):
        return False  # PyTorch says what is wrong
    return all(
        isinstance(link.layer, KIND_OF_LAYER[x.ndim])
        and link.layer.plain
        and link.weight.dtype == x.dtype
        and (link.bias.ndim == 1 or len(link.bias) == len(x))
        and (link.bias.ndim < 4 or link.bias.shape[2:] == x.shape[2:])
        and kind_of(link.activation) is not None
        for link in links
    )


def kind_of(activation: Activation | None) -> int | None:
    """The ``Kind`` of an activation; None for one that is not compiled."""
    if activation is None:
        return 0
    if isinstance(activation, Beside):
        if type(activation.inner) is Identity:
            return BESIDE
        inner = KINDS.get(type(activation.inner))
        return None if inner is None else BESIDE + inner
    return KINDS.get(type(activation))
