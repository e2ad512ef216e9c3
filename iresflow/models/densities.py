"""Base densities of the latent."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from iresflow.ambient import WideFloats, own_arithmetic
from iresflow.tensors import linear, sum_per_sample, widest

__all__ = ["PRIORS", "BaseDensity", "DiagonalNormal", "StudentT", "UnitUniform"]


class BaseDensity(WideFloats, nn.Module, ABC):
    """A density on flat latents ``(B, D)``."""

    @abstractmethod
    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats, ``(B, D)`` and an optional ``(B, context_dim)`` to ``(B,)``."""

    @abstractmethod
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n latents ``(n, D)``; the temperature scales the deviations from the mean."""

    def standard_normal(self, z: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Latents ``(B, D)`` moved so that those of this density are standard normal.

        Returns:
            ``(B, D)`` without a graph; None where no such map is known.
        """
        del z, context
        return None

    def defect(self) -> str | None:
        """What makes this no density in floats, or None; NaN is looked for elsewhere."""
        return None


class _LocationScale(BaseDensity):
    """A density around 0, moved and stretched along the axes.

    Arguments:
        dim: D.
        learned: Whether mean and log standard deviation are trained; else they stay 0.
        context_dim: Where above 0 and `learned`, a linear map of the context shifts both.
    """

    def __init__(self, dim: int, *, learned: bool = False, context_dim: int = 0) -> None:
        super().__init__()
        self.mean: Tensor
        self.log_std: Tensor
        if learned:
            self.mean = nn.Parameter(torch.zeros(dim))
            self.log_std = nn.Parameter(torch.zeros(dim))
        else:
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("log_std", torch.zeros(dim))
        self.shift: nn.Linear | None = None
        if learned and context_dim:
            self.shift = nn.Linear(context_dim, 2 * dim, bias=False)
            nn.init.zeros_(self.shift.weight)

    @abstractmethod
    def standard_log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of the latents before they are moved and stretched: ``(B, D)`` to
        ``(B,)``."""

    @abstractmethod
    def normal_of_standard(self, z: Tensor) -> Tensor:
        """Latents ``(B, D)`` before that, moved so that those of this density are normal."""

    @abstractmethod
    def standard_sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n draws ``(n, D)`` of those."""

    @final
    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        with own_arithmetic():
            mean, log_std = self._moments(context)
            return self.standard_log_prob((z - mean) * (-log_std).exp()) - log_std.sum(-1)

    @final
    @torch.no_grad()
    def standard_normal(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        with own_arithmetic():
            mean, log_std = self._moments(context)
            return self.normal_of_standard((z - mean) * (-log_std).exp())

    @final
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        with own_arithmetic():
            mean, log_std = self._moments(context)
            return mean + temperature * log_std.exp() * self.standard_sample(n, generator)

    def defect(self) -> str | None:
        std = self.log_std.detach().exp()
        bad = (std < torch.finfo(std.dtype).tiny) | std.isinf()
        if bool(bad.any()):
            worst = float(self.log_std.detach()[bad][0])
            return f"its deviation exp({worst:.4g}) is no normal number of {std.dtype}"
        return None

    def _moments(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.shift is None or context is None:
            return self.mean, self.log_std
        context = context.to(self.mean.dtype)
        mean, log_std = linear(context, self.shift.weight).chunk(2, dim=1)
        return self.mean + mean, self.log_std + log_std


@final
class DiagonalNormal(_LocationScale):
    """A normal density with independent entries.

    Arguments:
        dim: D.
        learned: Whether mean and log standard deviation are trained; else they stay 0.
        context_dim: Where above 0 and `learned`, a linear map of the context shifts both.
    """

    def standard_log_prob(self, z: Tensor) -> Tensor:
        return sum_per_sample(-0.5 * (z.square() + math.log(2 * math.pi)))

    def normal_of_standard(self, z: Tensor) -> Tensor:
        return z

    def standard_sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return _standard_normal(n, self.mean, generator)


@final
class StudentT(_LocationScale):
    r"""Student's t in D dimensions, stretched along the axes, with trainable degrees of freedom.

    A flow whose maps are Lipschitz in both directions, as all of ours are, gives the data the
    tails of its base (Jaini et al., 2020): from a normal one it makes no heavy tails, and a row
    far out costs half its squared distance. With :math:`\nu` degrees of freedom it costs
    :math:`\nu + D` times the logarithm of its distance.

    Arguments:
        dim: D.
        learned: Whether location and log scale are trained, which are called mean and deviation;
            else they stay 0.
        context_dim: Where above 0 and `learned`, a linear map of the context shifts both.
        degrees: Of freedom, at the start.

    References:
        Tails of Lipschitz Triangular Flows (Jaini et al., 2020), which trains the degrees of
        freedom with the flow. https://arxiv.org/abs/1907.04481
    """

    def __init__(
        self, dim: int, *, learned: bool = False, context_dim: int = 0, degrees: float = 10.0
    ) -> None:
        super().__init__(dim, learned=learned, context_dim=context_dim)
        self.log_degrees = nn.Parameter(torch.tensor(math.log(degrees)))

    def standard_log_prob(self, z: Tensor) -> Tensor:
        # In the widest type: of many degrees, the difference of both lgamma is small.
        dim, degrees = z.shape[1], self.log_degrees.to(widest(z.device)).exp()
        ends = torch.lgamma((degrees + dim) / 2) - torch.lgamma(degrees / 2)
        constant = ends - 0.5 * dim * (degrees * math.pi).log()
        # Over the root first: a square of what is far out would leave the range of the type.
        scaled = z * degrees.rsqrt().to(z.dtype)
        tail = torch.log1p(sum_per_sample(scaled.square()))
        return constant.to(z.dtype) - ((degrees + dim) / 2).to(z.dtype) * tail

    def normal_of_standard(self, z: Tensor) -> Tensor:
        # All directions are alike, and the radius goes to that of the same probability: its square
        # over D has an F distribution here, and a chi-square one there.
        from scipy import special  # slow to import

        dim, wide = z.shape[1], z.detach().to("cpu", torch.float64)
        degrees = float(self.log_degrees.exp())
        radius = wide.square().sum(1)
        ratio = (radius / dim).numpy()
        # Each from its own tail, where the other probability has rounded to 1.
        inside = torch.from_numpy(special.fdtr(dim, degrees, ratio))
        below = 2 * special.gammaincinv(dim / 2, inside.numpy())
        above = 2 * special.gammainccinv(dim / 2, special.fdtrc(dim, degrees, ratio))
        square = torch.where(inside < 0.5, torch.from_numpy(below), torch.from_numpy(above))
        scale = (square / radius.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        return (wide * scale[:, None]).to(z)

    def standard_sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        # A normal draw over the root of a chi-square over its degrees, which is a gamma draw over
        # its shape. torch.distributions has it too, but takes no generator.
        shape = (self.log_degrees.to(widest(self.log_degrees.device)).exp() / 2).expand(n, 1)
        relative = torch._standard_gamma(shape, generator=generator) / shape
        stretch = relative.clamp_min(torch.finfo(shape.dtype).tiny).rsqrt()
        return _standard_normal(n, self.mean, generator) * stretch.to(self.mean.dtype)

    def defect(self) -> str | None:
        degrees = self.log_degrees.detach().exp()
        if not torch.finfo(degrees.dtype).tiny <= float(degrees) < math.inf:
            value = float(self.log_degrees.detach())
            return f"exp({value:.4g}) degrees of freedom are no normal number of {degrees.dtype}"
        return super().defect()


def _standard_normal(n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws ``(n, D)`` for a mean ``(D,)``."""
    size = (n, like.shape[0])
    return torch.randn(size, generator=generator, device=like.device, dtype=like.dtype)


PRIORS: dict[str, type[_LocationScale]] = {"normal": DiagonalNormal, "student": StudentT}
"""The densities of latents by the names that configurations use."""


@final
class UnitUniform(BaseDensity):
    """The uniform density on the unit cube; minus infinity outside.

    Arguments:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.like: Tensor
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        inside = ((z >= 0) & (z <= 1)).all(dim=1)
        return torch.where(inside, 0.0, -torch.inf).to(z.dtype)

    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        size = (n, self.dim)
        u = torch.rand(size, generator=generator, device=self.like.device, dtype=self.like.dtype)
        return 0.5 + temperature * (u - 0.5)
