r"""The noise that makes densities of integer images, and what it counts in their bits.

An integer image y becomes :math:`x = (y + u) / \text{levels}` with u in the unit cube. For noise
of any density q that may depend on y,

.. math:: \log P(y) \ge \mathbb{E}_{u \sim q(\cdot | y)} [\log p(y + u) - \log q(u | y)]

(Theis et al., 2016; Ho et al., 2019), so each draw counts :math:`\log q(u | y)` nats against the
density of x. Uniform noise counts nothing. The nearer q is to the model's own density within a
pixel's grey level, the nearer the bound is to the integers' likelihood.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from einops import rearrange
from torch import Tensor, nn

from iresflow.ambient import WideFloats
from iresflow.bijections import Bijection, Composition, LogDet, ResidualBlock, with_noise
from iresflow.streams import NORMAL, UNIFORM, Stream, draw
from iresflow.tensors import sum_per_sample

__all__ = [
    "NOISES",
    "Noise",
    "Noisy",
    "TruncatedNormalNoise",
    "UniformNoise",
    "VariationalNoise",
    "noise_named",
]

NOISES = ("uniform", "truncated-normal", "variational")
"""Kinds of noise by the names that configurations use."""


@final
@dataclass(frozen=True)
class Noisy:
    """Integer images with noise.

    Attributes:
        value: x ``(B, C, H, W)``, floats in [0, 1).
        log_density: :math:`\\log q(u | y)` in nats, ``(B,)``; the logarithm of a density of u in
            the unit cube.
    """

    value: Tensor
    log_density: Tensor


class Noise(WideFloats, nn.Module, ABC):
    """A density q of noise in the unit cube, given an integer image."""

    @property
    def spec(self) -> dict[str, Any]:
        """The arguments of a flow that ask for it; none for what a flow has by itself."""
        return {}

    def blocks(self) -> Iterator[tuple[str, ResidualBlock]]:
        """The residual blocks in it, which have to be contractive, with their names."""
        for name, module in self.named_modules():
            if isinstance(module, ResidualBlock):
                yield name, module

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        levels: int,
        dtype: torch.dtype,
        stream: Stream | None,
        log_det: LogDet | None = None,
    ) -> Noisy:
        """Integer images ``(B, C, H, W)`` with a draw of noise each.

        Arguments:
            images: Integers 0 .. levels - 1.
            levels: Grey levels.
            dtype: Of x.
            stream: Where the noise comes from.
            log_det: The estimator of residual blocks' log-determinants, where there are any.
        """

    def sample(
        self, images: Tensor, levels: int, dtype: torch.dtype, stream: Stream | None
    ) -> Tensor:
        """x alone, without the cost of the noise's density."""
        return self(images, levels, dtype, stream).value


@final
class UniformNoise(Noise):
    """Uniform noise (thesis, Lemma 5.10; Theis et al., 2016)."""

    def forward(
        self,
        images: Tensor,
        levels: int,
        dtype: torch.dtype,
        stream: Stream | None,
        log_det: LogDet | None = None,
    ) -> Noisy:
        u = draw(UNIFORM, images.shape, stream, batch=0, device=images.device, dtype=dtype)
        return Noisy(with_noise(images, u, levels), u.new_zeros(len(u)))


@final
class TruncatedNormalNoise(Noise):
    """Normal noise about the middle of a grey level, truncated at its ends; nothing is trained.

    Arguments:
        deviation: Standard deviation of the normal density before it is truncated, in grey levels.
            A sixth keeps three of them within; large ones are as good as uniform.

    Raises:
        ValueError: the deviation is not above 0.

    References:
        Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs (Zheng et al.,
        2023). https://arxiv.org/abs/2305.03935
    """

    def __init__(self, deviation: float = 1 / 6) -> None:
        super().__init__()
        if not deviation > 0:
            raise ValueError(f"deviation must be above 0, got {deviation}")
        self.deviation = deviation

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "dequantization": "truncated-normal",
            "dequantization_deviation": self.deviation,
        }

    def forward(
        self,
        images: Tensor,
        levels: int,
        dtype: torch.dtype,
        stream: Stream | None,
        log_det: LogDet | None = None,
    ) -> Noisy:
        v = draw(UNIFORM, images.shape, stream, batch=0, device=images.device, dtype=dtype)
        # v to its quantile: from -end to end in standard deviations, with the inverse of the error
        # function, whose argument is exact about the middle.
        end = 0.5 / self.deviation / math.sqrt(2)
        inside = math.erf(end)
        scaled = torch.erfinv((2 * v - 1) * inside).clamp(-end, end)
        u = 0.5 + scaled * (self.deviation * math.sqrt(2))
        constant = math.log(self.deviation * math.sqrt(2 * math.pi) * inside)
        return Noisy(with_noise(images, u, levels), -sum_per_sample(scaled.square() + constant))

    def extra_repr(self) -> str:
        return f"deviation={self.deviation:.4g}"


@final
class VariationalNoise(Noise):
    r"""Noise that a conditional flow makes of normal noise, given the image.

    :math:`u = \Phi(F(\epsilon; y))` with normal :math:`\epsilon`, the normal distribution function
    :math:`\Phi`, and F a flow whose context is the image. With F the identity, u is uniform. So
    :math:`\log q(u|y) = \log N(\epsilon) - \log|\det J_F(\epsilon)| - \log N(F(\epsilon))`.

    Arguments:
        bijection: F, of images with C factor^2 channels and H / factor by W / factor pixels; its
            context ``(B, C, H, W)`` is the image in -0.5 .. 0.5.
        shape: (C, H, W) of the images.
        factor: Side of the patches of pixels that F takes as channels.

    Raises:
        ValueError: when it is called, for images of another shape.

    References:
        Flow++: Improving Flow-Based Generative Models with Variational Dequantization and
        Architecture Design (Ho et al., 2019). https://arxiv.org/abs/1902.00275
    """

    def __init__(self, bijection: Bijection, shape: tuple[int, int, int], factor: int = 1) -> None:
        super().__init__()
        self.bijection = bijection
        self.shape = shape
        self.factor = factor
        for name, block in self.blocks():
            block.name = f"block noise.{name}"

    @property
    def spec(self) -> dict[str, Any]:
        count = len(list(self.blocks()))
        return {"dequantization": "variational", "dequantization_blocks": count}

    def forward(
        self,
        images: Tensor,
        levels: int,
        dtype: torch.dtype,
        stream: Stream | None,
        log_det: LogDet | None = None,
    ) -> Noisy:
        epsilon, context = self._drawn(images, levels, dtype, stream)
        h, term = self.bijection(epsilon, context, log_det)
        # Of two normal densities, the constants cancel.
        ratio = 0.5 * (sum_per_sample(h.square()) - sum_per_sample(epsilon.square()))
        return Noisy(self._within(images, h, levels), ratio - term)

    def sample(
        self, images: Tensor, levels: int, dtype: torch.dtype, stream: Stream | None
    ) -> Tensor:
        epsilon, context = self._drawn(images, levels, dtype, stream)
        return self._within(images, self.bijection.transform(epsilon, context), levels)

    def _drawn(
        self, images: Tensor, levels: int, dtype: torch.dtype, stream: Stream | None
    ) -> tuple[Tensor, Tensor]:
        """Normal noise as F takes it, and its context."""
        if images.shape[1:] != self.shape:
            shapes = f"(B, {', '.join(map(str, self.shape))}), got {tuple(images.shape)}"
            raise ValueError(f"this noise is for images of shape {shapes}")
        epsilon = draw(NORMAL, images.shape, stream, batch=0, device=images.device, dtype=dtype)
        sides = {"i": self.factor, "j": self.factor}
        epsilon = rearrange(epsilon, "b c (h i) (w j) -> b (c i j) h w", **sides)
        return epsilon, images.to(dtype) / (levels - 1) - 0.5

    def _within(self, images: Tensor, h: Tensor, levels: int) -> Tensor:
        sides = {"i": self.factor, "j": self.factor}
        h = rearrange(h, "b (c i j) h w -> b c (h i) (w j)", **sides)
        return with_noise(images, torch.special.ndtr(h), levels)


def noise_named(
    name: str,
    shape: tuple[int, int, int],
    step: Callable[[int, tuple[int, int]], Bijection],
    *,
    blocks: int,
    deviation: float,
    factor: int,
) -> Noise:
    """The noise of one of `NOISES`, for images of a shape (C, H, W).

    Arguments:
        name: Of the noise.
        shape: Of the images.
        step: Makes one block of variational noise from its channels, height and width.
        blocks: How many of them.
        deviation: Of truncated normal noise.
        factor: See `VariationalNoise`.

    Raises:
        ValueError: an unknown name, or a deviation that is not above 0.
    """
    if name not in NOISES:
        raise ValueError(f"unknown dequantization {name!r}; choose one of {', '.join(NOISES)}")
    if name == "uniform":
        return UniformNoise()
    if name == "truncated-normal":
        return TruncatedNormalNoise(deviation)
    channels, (height, width) = shape[0] * factor**2, (shape[1] // factor, shape[2] // factor)
    maps = [step(channels, (height, width)) for _ in range(blocks)]
    return VariationalNoise(Composition(maps), shape, factor)
