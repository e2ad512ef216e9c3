"""Multi-scale flows on images (thesis, section 5.4 and appendix A.2)."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from iresflow.bijections import (
    ActNorm,
    Bijection,
    Center,
    ConditionalPrior,
    Logit,
    MultiScale,
    ResidualBlock,
    check_levels,
    dequantize,
    quantize,
)
from iresflow.lipschitz import PADDINGS, activation_named, conv_branch, normalization_named
from iresflow.logdet import LogDetEstimator, PowerSeries
from iresflow.models.bits import BitsPerDim
from iresflow.models.contexts import context_of_spec
from iresflow.models.densities import DiagonalNormal
from iresflow.models.flow import Flow
from iresflow.models.given import given_named
from iresflow.models.images import require_integers
from iresflow.models.likelihood import sample_stream
from iresflow.models.plain import estimator_spec, integer, integers, number, switch, widths, word
from iresflow.models.scales import multi_scale, require_divisible
from iresflow.streams import Stream

__all__ = ["ImageFlow"]


@final
class ImageFlow(Flow):
    """A multi-scale i-ResNet flow on images.

    Each scale is a row of [ActNorm, residual block]; between two scales the image is squeezed
    (2 x 2 pixels to channels) and, if asked, half of its channels are factored out. Nothing is
    factored out behind a scale of 0 blocks, so ``blocks=(0, 8, 4)`` squeezes first.

    Arguments:
        shape: (C, H, W) of an image.
        blocks: Residual blocks on each scale, finest first.
        hidden: Channels inside the branches: one number, or one for each gap between layers.
        kernels: Sides of the kernels of a branch's convolutions, in pixels, odd: one a layer.
        padding: What they read beyond the border: zeros, circular or reflect.
        levels: Grey levels of the integer images, 256 for 8 bits.
        context_dim: Dimension of the context, or (C, H, W) where it is an image: as large as the
            images, or larger or smaller by one whole factor. 0 for none.
        given: Name of what of an image is known, whose contexts `given` makes: grey, small or
            surroundings. None for contexts of one's own.
        activation: Name of the activations: clipswish, elu, lipswish, sine, sine-cosine, softplus
            or tanh.
        activate_input: Whether an activation stands in front of each branch's first layer, but for
            the first branch's.
        coeff: Upper limit of each layer's operator norm, in (0, 1).
        normalization: What training divides the weights by: estimates by ``bidiagonalization`` or
            ``certified`` norms, which cost more and hold in every step.
        factor_out: Whether half of the channels go to the latent behind each scale.
        alpha: The logit's distance from 0 and 1; 0 centres the pixels instead.
        learned_prior: Whether mean and variance of the latent are trained.
        conditional_prior: Whether mean and scale of what is factored out come from what stays, see
            `iresflow.bijections.ConditionalPrior`.
        log_det: The estimator in training mode.

    Raises:
        ValueError: an image size that the squeezes don't divide, or a value out of range.

    Warns:
        StorageWarning: the estimator can't be described, so the model can't be stored.

    Example:
        >>> flow = ImageFlow((1, 8, 8), blocks=(1, 1), hidden=8)
        >>> images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
        >>> flow.initialize(flow.dequantize(images))
        >>> flow.eval().bits_per_dim(images).values.shape
        torch.Size([16])
    """

    INTEGER_ADVICE = "; integer images go through dequantize or bits_per_dim"

    def __init__(
        self,
        shape: Sequence[int],
        blocks: Sequence[int] = (8, 8, 8),
        hidden: int | Sequence[int] = 128,
        *,
        kernels: Sequence[int] = (3, 1, 3),
        padding: str = "zeros",
        levels: int = 256,
        context_dim: int | Sequence[int] = 0,
        given: str | None = None,
        activation: str = "lipswish",
        activate_input: bool = True,
        coeff: float = 0.97,
        normalization: str = "bidiagonalization",
        factor_out: bool = True,
        alpha: float = 0.05,
        learned_prior: bool = True,
        conditional_prior: bool = False,
        log_det: LogDetEstimator | None = None,
    ) -> None:
        shape, blocks = integers("shape", shape, 1), integers("blocks", blocks, 0)
        hidden, context = widths("hidden", hidden), context_of_spec(context_dim)
        kernels, padding = integers("kernels", kernels, 1), word("padding", padding)
        levels, factor_out = integer("levels", levels, 2), switch("factor_out", factor_out)
        coeff, learned_prior = number("coeff", coeff), switch("learned_prior", learned_prior)
        alpha, activation = number("alpha", alpha), word("activation", activation)
        conditional_prior = switch("conditional_prior", conditional_prior)
        if conditional_prior and not (factor_out and len(blocks) > 1 and any(blocks[:-1])):
            raise ValueError("conditional_prior is of what is factored out, and nothing is here")
        normalization = word("normalization", normalization)
        activate_input = switch("activate_input", activate_input)
        if padding not in PADDINGS:
            raise ValueError(f"unknown padding {padding!r}; choose one of {', '.join(PADDINGS)}")
        check_levels(levels, torch.get_default_dtype())
        require_divisible(shape, blocks)
        known = None if given is None else given_named(word("given", given))(levels)
        if known is not None:
            if context:
                raise ValueError("what is given makes the context: leave context_dim at 0")
            context = known.shape(shape)
        log_det = log_det or PowerSeries()
        self.spec: dict[str, Any] = {
            "shape": shape,
            "blocks": blocks,
            "hidden": hidden,
            "levels": levels,
            "context_dim": list(context) if isinstance(context, tuple) else context,
            "activation": activation,
            "coeff": coeff,
            "normalization": normalization,
            "factor_out": factor_out,
            "alpha": alpha,
            "learned_prior": learned_prior,
            "log_det": estimator_spec(log_det),
        }
        # Left out where they are what older files mean without a word.
        if kernels != [3, 1, 3]:
            self.spec["kernels"] = kernels
        if padding != "zeros":
            self.spec["padding"] = padding
        if known is not None:
            self.spec |= {"given": given, "context_dim": 0}
        if conditional_prior:
            self.spec["conditional_prior"] = True
        if not activate_input:
            self.spec["activate_input"] = False

        def step(channels: int, size: tuple[int, int], first: bool) -> list[Bijection]:
            branch = conv_branch(
                channels,
                hidden,
                size,
                kernels=kernels,
                padding=PADDINGS[padding],
                activation=activation_named(activation),
                coeff=coeff,
                normalization=normalization_named(normalization),
                activate_input=activate_input and not first,
                context_dim=context,
            )
            return [ActNorm(channels), ResidualBlock(branch)]

        def prior(stays: int, out: int, size: tuple[int, int]) -> ConditionalPrior:
            network = conv_branch(
                stays,
                max(hidden) if isinstance(hidden, list) else hidden,
                size,
                outputs=2 * out,
                kernels=(3, 3),
                padding=PADDINGS[padding],
                activation=activation_named(activation),
                coeff=coeff,
                normalization=normalization_named(normalization),
                activate_input=False,
                context_dim=context,
            )
            return ConditionalPrior(network, out)

        dim = math.prod(shape)
        super().__init__(
            multi_scale(
                (shape[0], shape[1], shape[2]),
                blocks,
                step,
                factor_out=factor_out,
                prior=prior if conditional_prior else None,
            ),
            DiagonalNormal(
                dim,
                learned=learned_prior,
                context_dim=context if isinstance(context, int) else 0,
            ),
            tuple(shape),
            data_map=Logit(alpha) if alpha else Center(),
            context_dim=context,
            log_det=log_det,
        )
        self.levels = levels
        self.given = known

    def latents(self, z: Tensor) -> tuple[Tensor, ...]:
        """The flat latent ``(B, D)`` as images, one ``(B, C, H, W)`` for each scale."""
        assert isinstance(self.bijection, MultiScale)
        return self.bijection.split(z)

    def dequantize(self, images: Tensor, generator: Stream | None = None) -> Tensor:
        """Integers ``(B, C, H, W)`` in 0 .. levels - 1 to floats in [0, 1).

        Raises:
            ValueError: floats, another shape, or integers out of range.
        """
        require_integers(images, self.shape, self.levels)
        dtype = next(t.dtype for t in self.parameters())
        return dequantize(images, self.levels, dtype=dtype, generator=generator)

    def quantize(self, x: Tensor) -> Tensor:
        """Floats to integers 0 .. levels - 1; what lies outside of [0, 1) is clamped."""
        return quantize(x, self.levels)

    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Tensor,
        context: Tensor | None = None,
        log_det: LogDetEstimator | None = None,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
    ) -> BitsPerDim:
        """Bits/dim of integer images ``(N, C, H, W)``, each with one draw of dequantisation noise.

        :math:`-\\log_2 p(x) / D + \\log_2(\\text{levels})` for the density of x in [0, 1): in
        expectation an upper bound of the integers' bits/dim (thesis, section 5.3).

        Noise and probes of an image are a function of the seed, and of the image and its context:
        with the same seed it has the same bits/dim in any batch, and without one each call draws
        a new seed. Images that are equal share their numbers.

        Arguments:
            images: ``(N, C, H, W)``, integers 0 .. levels - 1.
            context: ``(N, context_dim)`` or ``(N, C, H, W)``, for conditional flows; that of what
                is given of the images unless it is passed.
            log_det: The estimator of the residual blocks' log-determinants.
            generator: Where the seed is drawn from; None for torch's global stream.
            seed: Any integer.

        Raises:
            ValueError: as `dequantize`, a context of another shape, or both generator and seed.
            NotContractiveError: in eval mode, where a block's certified bound is not below 1.
        """
        require_integers(images, self.shape, self.levels)
        if context is None and self.given is not None:
            context = self.given(images)
        context = self._checked_context(context, len(images))
        stream = sample_stream((images, context), generator, seed)
        x, context = self._checked(self.dequantize(images, stream), context)
        return BitsPerDim(
            self._likelihood(x, context, log_det, stream), self.base_dim, self.levels
        )

    def _check_range(self, x: Tensor) -> None:
        reach = self.data_map.reach + 1e-6
        outside = ((x < -reach) | (x > 1 + reach)).to(x.dtype).mean()
        if bool(outside > self.data_map.outliers):
            raise ValueError(
                f"images are floats in [0, 1), got {float(x.min()):.4g} .. {float(x.max()):.4g}; "
                "0 .. 255 go as integers through dequantize or bits_per_dim"
            )
