"""Branches by their shape: of convolutions on images, of dense layers on vectors."""

from collections.abc import Callable, Sequence

from iresflow.lipschitz.branch import Branch, ContextDim
from iresflow.lipschitz.layers.activations import Activation
from iresflow.lipschitz.layers.base import NormalizedLayer
from iresflow.lipschitz.layers.linear import NormalizedConv2d, NormalizedDense
from iresflow.lipschitz.layers.normalization import Normalization
from iresflow.lipschitz.layers.padding import Padding

__all__ = ["conv_branch", "dense_branch", "hidden_widths"]


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

    Raises:
        ValueError: no kernel, an even one, or another number of widths than of gaps.
    """

    def layer(inputs: int, outgoing: int, depth: int) -> NormalizedConv2d:
        return NormalizedConv2d(
            inputs,
            outgoing,
            kernels[depth],
            image_size,
            padding=padding,
            coeff=coeff,
            normalization=normalization,
        )

    widths = hidden_widths(hidden, len(kernels))
    ends = (channels, outputs or channels)
    return _branch(layer, ends, widths, activation, activate_input, context_dim)


def dense_branch(
    dim: int,
    hidden: int | Sequence[int],
    *,
    activation: type[Activation],
    coeff: float,
    normalization: Normalization | None = None,
    activate_input: bool = True,
    context_dim: int = 0,
) -> Branch:
    """A branch of dense layers on vectors ``(B, dim)``.

    Arguments:
        hidden: Units between the layers: one number for each gap, or one for the two gaps of
            three layers. The others are those of `conv_branch`.
    """

    def layer(inputs: int, outputs: int, depth: int) -> NormalizedDense:
        return NormalizedDense(inputs, outputs, coeff=coeff, normalization=normalization)

    layers = 3 if isinstance(hidden, int) else len(hidden) + 1
    widths = hidden_widths(hidden, layers)
    return _branch(layer, (dim, dim), widths, activation, activate_input, context_dim)


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


def _branch(
    layer: Callable[[int, int, int], NormalizedLayer],
    ends: tuple[int, int],
    widths: Sequence[int],
    activation: type[Activation],
    activate_input: bool,
    context_dim: ContextDim,
) -> Branch:
    """A branch of layers, each made from its inputs, its outputs and its depth."""
    outputs = [*widths, ends[1]]
    inputs = [activation.width * n for n in (ends[0], *widths)]
    if not activate_input:
        inputs[0] = ends[0]
    layers = [
        layer(*sizes, depth) for depth, sizes in enumerate(zip(inputs, outputs, strict=True))
    ]
    activations = [activation() for _ in layers]
    first = activations if activate_input else [None, *activations[1:]]
    return Branch(layers, first, context_dim=context_dim)
