"""Multi-scale flows on images (thesis, section 5.4 and appendix A.2)."""

import math
from collections.abc import Iterator, Sequence
from typing import cast, final

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections import (
    BranchBlock,
    Center,
    Logit,
    MultiScale,
    StreamedLogDet,
    quantize,
)
from iresflow.linearization import Linearization
from iresflow.logdet import TRAINING, LogDetEstimate, LogDetEstimator
from iresflow.models.bits import BitsPerDim
from iresflow.models.densities import DiagonalNormal
from iresflow.models.dequantization import Noisy
from iresflow.models.flow import Flow
from iresflow.models.likelihood import sample_stream
from iresflow.models.parts.arguments import plain_arguments
from iresflow.models.parts.image_parts import ImageParts
from iresflow.models.parts.images import require_integers
from iresflow.models.parts.plain import estimator_spec
from iresflow.streams import Stream

__all__ = ["ImageFlow"]


@final
class ImageFlow(Flow):
    """A multi-scale i-ResNet flow on images.

    Each scale is a row of [ActNorm, residual block]; between two scales the image is squeezed
    (2 x 2 pixels to channels) and, if asked, half of its channels are factored out. Nothing is
    factored out after a scale of 0 blocks, so ``blocks=(0, 8, 4)`` squeezes first.

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
        slopes: Where trainable slopes of the activations, which are the frequencies of sines,
            start: in front of a branch, and between its layers; None for 0.97. See
            docs/numbers/ablation.md for what they bring.
        coeff: Upper limit of each layer's operator norm, in (0, 1).
        normalization: What training divides the weights by: estimates by ``bidiagonalization`` or
            ``certified`` norms, which cost more and hold in every step.
        factor_out: Whether half of the channels go to the latent after each scale.
        alpha: The logit's distance from 0 and 1; 0 centres the pixels instead.
        learned_prior: Whether mean and variance of the latent are trained.
        conditional_prior: Whether mean and scale of what is factored out come from what stays, see
            `iresflow.bijections.ConditionalPrior`.
        block: Kind of the blocks: residual or monotone, see `iresflow.bijections.MonotoneBlock`.
        links: How layers make up a branch: chained, or concatenated, where each but the last adds
            ``hidden`` channels to what came in, see `iresflow.lipschitz.concatenated`; or
            symmetric, a convolution and its transpose, see `iresflow.lipschitz.symmetric`.
        dequantization: Name of the noise that makes floats of integers: uniform, truncated-normal,
            or variational, see `iresflow.models.dequantization`.
        dequantization_blocks: Residual blocks of the flow that makes variational noise.
        dequantization_deviation: Standard deviation of truncated-normal noise, in grey levels.
        decorrelate: Whether a fixed linear map at each pixel takes the channels' correlations away
            before the blocks of each scale, see `iresflow.bijections.Decorrelate`: blocks would
            have to learn that map otherwise.
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
        slopes: Sequence[float] | None = None,
        coeff: float = 0.97,
        normalization: str = "bidiagonalization",
        factor_out: bool = True,
        alpha: float = 0.05,
        learned_prior: bool = True,
        conditional_prior: bool = False,
        block: str = "residual",
        links: str = "chained",
        dequantization: str = "uniform",
        dequantization_blocks: int = 4,
        dequantization_deviation: float = 1 / 6,
        decorrelate: bool = False,
        log_det: LogDetEstimator | None = None,
    ) -> None:
        plain = plain_arguments(locals())
        log_det = log_det or TRAINING
        parts = ImageParts(plain)
        self.spec = {**parts.spec, "log_det": estimator_spec(log_det)}
        super().__init__(
            parts.scales(),
            DiagonalNormal(
                math.prod(parts.image),
                learned=plain["learned_prior"],
                context_dim=parts.context if isinstance(parts.context, int) else 0,
            ),
            parts.image,
            data_map=Logit(plain["alpha"]) if plain["alpha"] else Center(),
            context_dim=parts.context,
            log_det=log_det,
        )
        self.levels = plain["levels"]
        self.given = parts.given
        self.noise = parts.noise

    def contractions(self) -> Iterator[tuple[str, BranchBlock]]:
        yield from self.blocks()
        yield from ((f"noise.{name}", block) for name, block in self.noise.blocks())

    def latents(self, z: Tensor) -> tuple[Tensor, ...]:
        """The flat latent ``(B, D)`` as images, one ``(B, C, H, W)`` for each scale."""
        assert isinstance(self.bijection, MultiScale)
        return self.bijection.split(z)

    @torch.no_grad()
    def dequantize(self, images: Tensor, generator: Stream | None = None) -> Tensor:
        """Integers ``(B, C, H, W)`` in 0 .. levels - 1 to floats in [0, 1), by the model's noise.

        Raises:
            ValueError: floats, another shape, or integers out of range.
        """
        require_integers(images, self.shape, self.levels)
        with own_arithmetic():
            return self.noise.sample(images, self.levels, self._dtype(), generator)

    def dequantized(
        self,
        images: Tensor,
        generator: Stream | None = None,
        log_det: StreamedLogDet | None = None,
        *,
        check: bool = True,
    ) -> Noisy:
        """`dequantize` with the log-density of the noise, which counts against that of x.

        Arguments:
            images: Integers ``(B, C, H, W)`` in 0 .. levels - 1.
            generator: The stream of the noise and of the probes.
            log_det: The estimator of the residual blocks' log-determinants.
            check: Whether the integers are checked, for which the host waits for a GPU.

        Raises:
            ValueError: floats, another shape, or integers out of range.
        """
        if check:
            require_integers(images, self.shape, self.levels)

        def estimator(linearization: Linearization, _: Stream | None = None) -> LogDetEstimate:
            # Bound when it is called: uniform noise takes nothing from a stream but itself.
            return self._bound_estimator(log_det, generator)(linearization)

        with own_arithmetic():
            return self.noise(images, self.levels, self._dtype(), generator, estimator)

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

        :math:`-(\\log_2 p(x) - \\log_2 q(u)) / D + \\log_2(\\text{levels})` for the density of x
        in [0, 1), and q of the noise, 1 if it is uniform: in expectation an upper bound of the
        integers' bits/dim (thesis, section 5.3).

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
        estimates: list[LogDetEstimate] = []

        def recording(
            linearization: Linearization, generator: Stream | None = None
        ) -> LogDetEstimate:
            estimates.append(self._bound_estimator(log_det, generator)(linearization))
            return estimates[-1]

        noisy = self.dequantized(images, stream, recording)
        x, context = self._checked(noisy.value, context)
        found = self._in_blocks(x, context, log_det, stream, noisy.log_density, estimates)
        return BitsPerDim(found.total(), self.base_dim, self.levels)

    def _check_range(self, x: Tensor) -> None:
        pixels = cast(Center | Logit, self.data_map)
        reach = pixels.reach + 1e-6
        outside = ((x < -reach) | (x > 1 + reach)).to(x.dtype).mean()
        if bool(outside > pixels.outliers):
            raise ValueError(
                f"images are floats in [0, 1), got {float(x.min()):.4g} .. {float(x.max()):.4g}; "
                "0 .. 255 go as integers through dequantize or bits_per_dim"
            )
