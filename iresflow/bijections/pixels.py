"""From integers to the real line: dequantisation, and maps of the unit interval."""

import math
from functools import lru_cache
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from iresflow.bijections.base import Bijection, LogDet
from iresflow.bijections.inverse import Accuracy, Inverse
from iresflow.bijections.stretch import Stretch
from iresflow.streams import UNIFORM, Stream, draw
from iresflow.tensors import sum_per_sample, wide_norm

__all__ = ["Center", "Logit", "check_levels", "dequantize", "quantize", "with_noise"]

ROUNDING = 8.0
"""Error of the logit's inverse, in units of eps for each entry."""


MARGIN = 1e-6
"""How far beyond its domain rounding may put a sample of `Logit`."""

NOISE_LEVELS = 256
"""At least so many values has the dequantisation noise between two grey levels."""


def check_levels(levels: int, dtype: torch.dtype) -> None:
    """Raises a ValueError where a type of float has too few digits for so many grey levels.

    Just below 1 its numbers are eps / 2 apart: with `NOISE_LEVELS` to each grey level, the noise
    is as good as uniform.
    """
    most = int(2 / (NOISE_LEVELS * torch.finfo(dtype).eps))
    if not 1 <= levels <= min(most, 2**31):
        raise ValueError(
            f"levels must lie between 1 and {min(most, 2**31)} with floats of {dtype}, got "
            f"{levels}: there are too few numbers between two levels for the noise"
        )


def dequantize(
    images: Tensor, levels: int, *, dtype: torch.dtype, generator: Stream | None = None
) -> Tensor:
    """Integers 0 .. levels - 1 to floats in [0, 1): ``(integer + u) / levels``, u uniform there.

    Uniform dequantisation makes the density's likelihood a lower bound of the integers' (thesis,
    Lemma 5.10; Theis et al., 2016).

    Raises:
        ValueError: the type of float can't tell so many levels, see `check_levels`.
    """
    device = images.device
    noise = draw(UNIFORM, images.shape, generator, batch=0, device=device, dtype=dtype)
    return with_noise(images, noise, levels)


def with_noise(images: Tensor, noise: Tensor, levels: int) -> Tensor:
    """``(integer + noise) / levels`` in [0, 1), so that `quantize` gives the integers back.

    Arguments:
        images: Integers 0 .. levels - 1.
        noise: In [0, 1], of the same shape.
        levels: Grey levels.

    Raises:
        ValueError: the type of float can't tell so many levels, see `check_levels`.
    """
    dtype = noise.dtype
    check_levels(levels, dtype)
    x = (images.to(dtype) + noise) / levels
    # In float32, 254 + 0.99999997 rounds to 255: the largest float below it stays inside.
    ends = torch.arange(1, levels + 1, device=images.device, dtype=dtype) / levels
    last = ends.nextafter(torch.zeros_like(ends))
    return torch.minimum(x, last[images.long()])


def quantize(x: Tensor, levels: int) -> Tensor:
    """Floats to the integers that they dequantise, clamped; ``uint8`` up to 256 levels."""
    integers = (x * levels).floor()
    # Where the product was rounded across the end of a grey level.
    low, high = x < integers / levels, x >= (integers + 1) / levels
    integers = (integers - low.to(x.dtype) + high.to(x.dtype)).clamp(0, levels - 1)
    return integers.to(torch.uint8 if levels <= 256 else torch.int32)


@lru_cache
def _log_in(dtype: torch.dtype, value: float) -> float:
    """A logarithm with the rounding of a type, on the host: a GPU would have to be waited for."""
    return float(torch.tensor(value, dtype=dtype, device="cpu").log())


@final
class Logit(Bijection):
    """``z = logit(alpha + (1 - 2 alpha) x)``, [0, 1] to an interval (RealNVP, section 4.1).

    Its inverse reaches a little beyond [0, 1], by ``reach = alpha / (1 - 2 alpha)``; `quantize`
    clamps. (`outliers` is the share of entries beyond `reach` that still can be an image.)

    Arguments:
        alpha: Distance kept from 0 and 1, in (0, 0.5).

    Raises:
        ValueError: alpha is outside (0, 0.5).
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie strictly between 0 and 0.5, got {alpha}")
        self.alpha = alpha
        self.reach = alpha / (1 - 2 * alpha)
        self.outliers = 0.0
        self.domain = constraints.interval(-self.reach - MARGIN, 1 + self.reach + MARGIN)

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.transform(x)
        # d logit(s) / ds = 1 / (s (1 - s)) and s = sigmoid(z).
        slope = F.softplus(z) + F.softplus(-z)
        return z, sum_per_sample(slope + _log_in(x.dtype, 1 - 2 * self.alpha))

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        s = self.alpha + (1 - 2 * self.alpha) * x
        # log s - log(1 - s), with 1 - s formed from x so that it keeps its digits near x = 1.
        rest = self.alpha + (1 - 2 * self.alpha) * (1 - x)
        # A sample at the end of the range may round to beyond it: its logit stays finite.
        eps = torch.finfo(x.dtype).eps
        return s.clamp_min(eps).log() - rest.clamp_min(eps).log()

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        width = 1 - 2 * self.alpha
        x = (z.sigmoid() - self.alpha) / width
        # The sigmoid lies in (0, 1), so each entry is off by a few eps of 1; its slope is at most
        # a quarter.
        rounding = ROUNDING * torch.finfo(x.dtype).eps / width * math.sqrt(math.prod(x.shape[1:]))
        return Inverse.closed_form(
            x,
            lipschitz=1 / (4 * width) * (1 + ROUNDING * torch.finfo(torch.float64).eps),
            rounding=torch.full_like(wide_norm(x), rounding),
        )

    def stretch(self, dim: int) -> Stretch:
        """On [0, 1]: the slope is least in the middle and largest at both ends."""
        width = 1 - 2 * self.alpha
        least = math.log(4 * width)
        largest = math.log(width / (self.alpha * (1 - self.alpha)))
        return Stretch(largest, -least, dim * least, dim * largest)


@final
class Center(Bijection):
    """``z = x - 0.5``: for pixels that need no logit. Its log-determinant is 0.

    Its domain is the real line, so samples may leave [0, 1].
    """

    reach = 0.05
    outliers = 0.25

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        return x - 0.5, x.new_zeros(x.shape[0])

    def stretch(self, dim: int) -> Stretch:
        return Stretch()

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x - 0.5

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        x = z + 0.5
        return Inverse.closed_form(x, rounding=torch.finfo(x.dtype).eps * wide_norm(x))
