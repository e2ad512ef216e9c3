"""Branches by their shape: of convolutions on images, of dense layers on vectors."""

from collections.abc import Callable, Sequence

import torch

from iresflow.lipschitz.branch import Branch, ContextDim, Layer
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.concatenation import Concatenated, beside
from iresflow.lipschitz.layers.form import Alone, Form
from iresflow.lipschitz.layers.linear import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.layers.normalization import Normalization
from iresflow.lipschitz.layers.padding import Padding
from iresflow.lipschitz.layers.transposed import Transposed

__all__ = [
    "LINKS",
    "chained",
    "concatenated",
    "conv_branch",
    "dense_branch",
    "hidden_widths",
    "links_named",
    "symmetric",
]

MakeLayer = Callable[[int, int, int, Form], NormalizedLayer]
Links = tuple[Sequence[Layer], Sequence[Activation | None]]
Slopes = tuple[float, float]
"""Where trainable slopes of activations start: in front of a branch, and between its layers."""

Linking = Callable[[MakeLayer, tuple[int, int], Sequence[int], type[Activation], bool], Links]


def conv_branch(
    channels: int,
    hidden: int | Sequence[int],
    image_size: tuple[int, int],
    *,
    activation: type[Activation],
    coeff: float,
    kernels: Sequence[int] = (3, 1, 3),
    normalization: Normalization | None = None,
    padding: Padding | None = None,
    activate_input: bool = True,
    context_dim: ContextDim = 0,
    outputs: int | None = None,
    links: Linking | None = None,
    slopes: Slopes | None = None,
) -> Branch:
    """A branch of convolutions, by default 3 x 3, 1 x 1 and 3 x 3 (thesis, appendix A.2).

    Arguments:
        channels: Of the image that comes in.
        hidden: Channels between the convolutions: one number for all, or one for each gap.
        image_size: Height and width in pixels.
        activation: The class of the activations.
        coeff: Upper limit of each layer's operator norm.
        kernels: Side of each convolution's kernel in pixels, odd.
        normalization: What training divides the weights by; `Bidiagonalization` by default.
        padding: What the convolutions read beyond the border; `ZeroPadding` by default.
        activate_input: Whether an activation stands before the first layer, as in all blocks but
            the first of a model.
        context_dim: Dimension of the context, or (C, H, W) of one that is an image; 0 for none.
        outputs: Channels of the image that goes out; None for those that come in.
        links: How the layers make up the branch; `chained` by default, or `concatenated`.
        slopes: Where the activations' trainable slopes start, in front of the first layer and
            between layers, above 0; None for 0.97. Activations without one don't mind.

    Raises:
        ValueError: no kernel, an even one, or another number of widths than of gaps.
    """

    def layer(inputs: int, outgoing: int, depth: int, form: Form) -> NormalizedConv2d:
        return NormalizedConv2d(
            inputs,
            outgoing,
            kernels[depth],
            image_size,
            padding=padding,
            coeff=coeff,
            normalization=normalization,
            form=form,
        )

    widths = hidden_widths(hidden, len(kernels))
    ends = (channels, outputs or channels)
    made = (links or chained)(layer, ends, widths, activation, activate_input)
    return Branch(*_started(made, slopes), context_dim=context_dim)


def dense_branch(
    dim: int,
    hidden: int | Sequence[int],
    *,
    activation: type[Activation],
    coeff: float,
    normalization: Normalization | None = None,
    activate_input: bool = True,
    context_dim: int = 0,
    links: Linking | None = None,
    slopes: Slopes | None = None,
) -> Branch:
    """A branch of dense layers on vectors ``(B, dim)``.

    Arguments:
        hidden: Units between the layers: one number for each gap, or one for the two gaps of
            three layers. The others are those of `conv_branch`.
    """

    def layer(inputs: int, outputs: int, depth: int, form: Form) -> NormalizedDense:
        del depth
        return NormalizedDense(
            inputs, outputs, coeff=coeff, normalization=normalization, form=form
        )

    layers = 3 if isinstance(hidden, int) else len(hidden) + 1
    widths = hidden_widths(hidden, layers)
    made = (links or chained)(layer, (dim, dim), widths, activation, activate_input)
    return Branch(*_started(made, slopes), context_dim=context_dim)


def _started(made: Links, slopes: Slopes | None) -> Links:
    """Layers and activations, whose trainable slopes start there."""
    if slopes is not None:
        for depth, activation in enumerate(made[1]):
            if activation is not None:
                activation.start_at(slopes[min(depth, 1)])
    return made


def hidden_widths(hidden: int | Sequence[int], layers: int) -> list[int]:
    """The widths between so many layers: a number for each gap, or one for all.

    Raises:
        ValueError: no layer, another number of widths than of gaps, or one that is not positive.
    """
    widths = [hidden] * (layers - 1) if isinstance(hidden, int) else list(hidden)
    if layers < 1:
        raise ValueError("a branch takes at least one layer, got none")
    if len(widths) != layers - 1 or not all(width > 0 for width in widths):
        raise ValueError(
            f"a branch of {layers} layers takes {layers - 1} positive widths between them, or one "
            f"for all, got {hidden}"
        )
    return widths


def chained(
    layer: MakeLayer,
    ends: tuple[int, int],
    widths: Sequence[int],
    activation: type[Activation],
    activate_input: bool,
) -> Links:
    """Layers and activations, each after the other.

    Arguments:
        layer: Makes each layer from its inputs, its outputs, its depth and its form.
        ends: Channels that come in and that go out.
        widths: Channels between the layers.
        activation: The class of the activations.
        activate_input: Whether one stands in front of the first layer.
    """
    outputs = [*widths, ends[1]]
    inputs = [activation.width * n for n in (ends[0], *widths)]
    if not activate_input:
        inputs[0] = ends[0]
    layers = [
        layer(*sizes, depth, Alone())
        for depth, sizes in enumerate(zip(inputs, outputs, strict=True))
    ]
    activations = [activation() for _ in layers]
    return layers, activations if activate_input else [None, *activations[1:]]


def concatenated(
    layer: MakeLayer,
    ends: tuple[int, int],
    widths: Sequence[int],
    activation: type[Activation],
    activate_input: bool,
) -> Links:
    """Each layer but the last one keeps what came in, and adds its ``widths`` of channels to it.

    See `iresflow.lipschitz.layers.concatenation`. Arguments as of `chained`.
    """
    layers: list[NormalizedLayer] = []
    activations: list[Activation | None] = []
    channels = ends[0]
    for depth, width in enumerate(widths):
        phi = activation if activate_input or depth else None
        inputs = channels * (phi.width if phi else 1)
        layers.append(layer(inputs, width, depth, Concatenated(channels)))
        activations.append(beside(phi)())
        channels += width
    last = activate_input or bool(widths)
    inputs = channels * (activation.width if last else 1)
    layers.append(layer(inputs, ends[1], len(widths), Alone()))
    activations.append(activation() if last else None)
    return layers, activations


def symmetric(
    layer: MakeLayer,
    ends: tuple[int, int],
    widths: Sequence[int],
    activation: type[Activation],
    activate_input: bool,
) -> Links:
    """A layer, an activation, and the layer's transpose: the Jacobian is symmetric.

    See `iresflow.lipschitz.layers.transposed`. Half of the hidden entries have the sign -1, so
    that the branch can both stretch and compress. No activation stands in front of the first
    layer, whatever ``activate_input`` says. Such a branch reaches the product of its norms, so
    training divides by certified norms: by estimates from below it would expand. Arguments as of
    `chained`.

    Raises:
        ValueError: there are not two layers of transposed shapes with one width between them, or
            the activation has several values for each entry.
    """
    del activate_input
    if len(widths) != 1 or ends[0] != ends[1]:
        raise ValueError(
            "a symmetric branch has one width between two layers (hidden=[128] for vectors, "
            f"kernels=(3, 3) for images) and ends as it begins, got widths {list(widths)} between "
            f"{ends[0]} and {ends[1]} channels"
        )
    if activation.width > 1:
        raise ValueError(
            f"a symmetric branch takes one value for each entry, and {activation.__name__} has "
            f"{activation.width}: take the sine for the pair of sine and cosine"
        )
    first = layer(ends[0], widths[0], 0, Alone())
    second = layer(widths[0], ends[1], 1, Alone())
    if first.weight.transpose(0, 1).shape != second.weight.shape:
        raise ValueError("a symmetric branch takes the same kernel size twice, such as (3, 3)")
    first.normalization = first.normalization.from_above()
    signs = torch.ones(widths[0])
    signs[::2] = -1
    return [first, Transposed(first, ends[1], signs)], [None, activation()]


LINKS: dict[str, Linking] = {
    "chained": chained,
    "concatenated": concatenated,
    "symmetric": symmetric,
}
"""How layers make up a branch, by the names that configurations use."""


def links_named(name: str) -> Linking:
    """One of `LINKS`, or a ValueError that names them all."""
    if name not in LINKS:
        raise ValueError(f"unknown links {name!r}; choose one of {', '.join(LINKS)}")
    return LINKS[name]
