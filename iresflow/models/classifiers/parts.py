"""What an invertible classifier is built of, from its constructor's arguments as plain values.

In its networks ActNorm comes after each block: before the first one, padded channels are zero and
have no deviation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from iresflow.bijections import (
    ActNorm,
    Bijection,
    ChannelMeans,
    Composition,
    ResidualBlock,
    check_levels,
)
from iresflow.lipschitz import (
    PADDINGS,
    Unlimited,
    activation_named,
    conv_branch,
    dense_branch,
    normalization_named,
)
from iresflow.models.classifiers.read_outs import PooledReadOut, ReadOut, SimplifiedReadOut
from iresflow.models.parts.arguments import plain_arguments
from iresflow.models.parts.plain import integer, integers
from iresflow.models.parts.scales import multi_scale, require_divisible

__all__ = ["network_of", "plain_spec"]


def _blocks(name: str, value: object) -> list[int]:
    several = isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0
    return integers(name, value, 0) if several else [integer(name, value, 0)]


def plain_spec(values: Mapping[str, object]) -> dict[str, Any]:
    """The arguments of an `InvertibleClassifier` as plain values.

    Raises:
        ValueError: one of them is none, or out of range.
    """
    spec = plain_arguments(values, blocks=_blocks)
    check_levels(spec["levels"], torch.get_default_dtype())
    if len(spec["shape"]) not in (1, 3):
        raise ValueError(
            f"shape is (channels, height, width) of an image or (D,) of a vector, got "
            f"{tuple(spec['shape'])}"
        )
    return spec


def network_of(spec: Mapping[str, Any]) -> tuple[Bijection, ReadOut, int]:
    """The network from padded inputs to flat latents ``(B, D)``, its read-out, and D.

    Raises:
        ValueError: an image size that the squeezes don't divide, a coefficient out of range, or
            more classes than the latent of a simplified read-out has entries.
    """
    activation, classes = activation_named(spec["activation"]), spec["classes"]
    limit = normalization_named(spec["normalization"])
    settings: dict[str, Any] = {
        "activation": activation,
        "coeff": spec["coeff"],
        "normalization": Unlimited() if spec["vanilla"] else limit,
    }
    channels, *size = spec["shape"]
    shape = (channels + spec["pad"], *size)
    if not size:
        bijection, last = _dense_network(shape[0], spec["blocks"], spec["hidden"], settings)
    else:
        settings |= {"kernels": spec["kernels"], "padding": PADDINGS[spec["padding"]]}
        bijection, last = _convolutional_network(shape, spec["blocks"], spec["hidden"], settings)
    dim = math.prod(last)
    if spec["read_out"] != "simplified":
        shape = last if spec["read_out"] == "pooled" else (dim,)
        return bijection, PooledReadOut(shape, classes, activation()), dim
    if classes > dim:
        raise ValueError(
            f"the first {classes} entries of the latent are to be the logits, and it has {dim}: "
            "take fewer classes, or a larger pad"
        )
    if len(last) == 3:
        bijection = Composition([bijection, ChannelMeans((last[0], last[1], last[2]))])
    return bijection, SimplifiedReadOut(classes), dim


def _dense_network(
    dim: int,
    blocks: Sequence[int],
    hidden: int | Sequence[int],
    settings: dict[str, Any],
) -> tuple[Bijection, tuple[int, ...]]:
    """Blocks on vectors ``(B, dim)``, and the shape of the latent."""
    maps: list[Bijection] = []
    for index in range(sum(blocks)):
        branch = dense_branch(dim, hidden, activate_input=index > 0, **settings)
        maps += [ResidualBlock(branch), ActNorm(dim)]
    return Composition(maps), (dim,)


def _convolutional_network(
    shape: tuple[int, ...],
    blocks: Sequence[int],
    hidden: int | Sequence[int],
    settings: dict[str, Any],
) -> tuple[Bijection, tuple[int, ...]]:
    """Scales of blocks on images, to flat latents, and the shape of the latent as an image."""
    require_divisible(shape, blocks)

    def step(channels: int, size: tuple[int, int], first: bool) -> list[Bijection]:
        branch = conv_branch(channels, hidden, size, activate_input=not first, **settings)
        return [ResidualBlock(branch), ActNorm(channels)]

    scales = multi_scale((shape[0], shape[1], shape[2]), blocks, step)
    return scales, scales.piece_shapes[-1]
