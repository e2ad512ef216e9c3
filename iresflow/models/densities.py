"""Base densities of the latent."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from iresflow.ambient import WideFloats
from iresflow.tensors import linear, sum_per_sample

__all__ = ["BaseDensity", "DiagonalNormal", "UnitUniform"]


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

    def defect(self) -> str | None:
        """What makes this no density in floats, or None; NaN is looked for elsewhere."""
        return None


@final
class DiagonalNormal(BaseDensity):
    """A normal density with independent entries.

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

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        mean, log_std = self._moments(context)
        scaled = (z - mean) * (-log_std).exp()
        return sum_per_sample(-0.5 * (scaled.square() + math.log(2 * math.pi)) - log_std)

    def standardized(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Latents ``(B, D)`` less the mean, in units of the deviations."""
        mean, log_std = self._moments(context)
        return (z - mean) * (-log_std).exp()

    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        mean, log_std = self._moments(context)
        size = (n, self.mean.shape[0])
        noise = torch.randn(size, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + temperature * log_std.exp() * noise

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
