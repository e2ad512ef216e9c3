r"""Priors of what is factored out whose mean and scale come from what stays.

With u the channels that go to the latent and v those that stay, the density of u is normal with
mean :math:`m(v)` and standard deviation :math:`e^{s(v)}` (RealNVP, Dinh et al., 2017, section 3.6;
Glow, Kingma and Dhariwal, 2018). It is written as the map :math:`z = (u - m(v)) e^{-s(v)}` before
a base density that knows nothing of v, so that its log-determinant, :math:`-\sum s(v)`, its
inverse and its samples are those of any other map.

m and s are the two halves of a network with norm-bounded layers, each output times a trainable
gain. So their Lipschitz constant K is known, and with it how far an error of v moves u. The scale
stays within :math:`e^{\pm 3}`: the map is invertible in floats whatever the weights.
"""

import math
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from iresflow.ambient import WideFloats
from iresflow.bijections.inverse import Inverse
from iresflow.bijections.stretch import Stretch
from iresflow.lipschitz import Branch
from iresflow.tensors import sum_per_sample, wide_norm, widest

__all__ = ["ConditionalPrior"]

LIMIT = 3.0
"""The logarithm of the scale stays below this in magnitude."""

ROUNDING = 16.0
"""What the pointwise operations are off by, in units of eps of what enters them."""


@final
class ConditionalPrior(WideFloats, nn.Module):
    """The map of what is factored out, u ``(B, C, H, W)``, given what stays, v ``(B, D, H, W)``.

    It starts as the identity.

    Arguments:
        network: From v to ``(B, 2 C, H, W)``. Its last layer is set to zero.
        count: C.
    """

    def __init__(self, network: Branch, count: int) -> None:
        super().__init__()
        self.network = network
        self.count = count
        self.gain = nn.Parameter(torch.ones(2 * count))
        network.vanish()

    def forward(self, u: Tensor, v: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """z ``(B, C, H, W)``, and the log-determinant ``(B,)`` of the map from u to z."""
        mean, log_scale = self._moments(v, context)
        return (u - mean) * (-log_scale).exp(), -sum_per_sample(log_scale)

    def transform(self, u: Tensor, v: Tensor, context: Tensor | None) -> Tensor:
        """z alone."""
        return self(u, v, context)[0]

    def invert(self, z: Tensor, rest: Inverse, context: Tensor | None) -> Inverse:
        """u beside v, ``(B, C + D, H, W)``.

        The map from the latent to v that found v goes on to u. No constant bounds it at all
        latents, since u moves by a scale that moves with v; at this z one does, see `_bound`.

        Arguments:
            z: ``(B, C, H, W)``, exact.
            rest: v with its error.
            context: ``(B, context_dim)``, or None.
        """
        v = rest.value
        mean, log_scale = self._moments(v, context)
        u = z * log_scale.exp() + mean
        bound = torch.hypot(rest.bound, self._bound(z, mean, u, rest, log_scale, context))
        value = torch.cat([u, v], dim=1)
        return replace(rest, value=value, bound=bound, lipschitz=math.inf)

    def stretch(self, dim: int) -> Stretch:
        """Of (u, v) to (z, v): of no Lipschitz constant, and a bounded log-determinant.

        Arguments:
            dim: The dimension of u.
        """
        return Stretch(math.inf, math.inf, -LIMIT * dim, LIMIT * dim)

    def _moments(self, v: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        chain = self.network.chain(context, v.dtype)
        # With a graph, one pass for its gradient; without, one that keeps nothing.
        raw = chain.linearize(v).value if torch.is_grad_enabled() else chain.value(v)
        mean, log_scale = (raw * self.gain[:, None, None]).chunk(2, dim=1)
        return mean, LIMIT * (log_scale / LIMIT).tanh()

    @torch.no_grad()
    def _bound(
        self,
        z: Tensor,
        mean: Tensor,
        u: Tensor,
        rest: Inverse,
        log_scale: Tensor,
        context: Tensor | None,
    ) -> Tensor:
        r"""Upper bound ``(B,)`` of the error of u, from that of v.

        From v to v' at a distance e, u moves by :math:`m' - m + z (e^{s'} - e^s)`, entry by entry
        at most :math:`|m' - m| + a |s' - s|` with :math:`a = |z| e^{\max s + K e}`; so by at most
        :math:`\sqrt{1 + \max a^2}\, K e` in all. Rounding moves m and s likewise.
        """
        chain, maps = self.network.contraction(context)
        assert chain.lipschitz is not None
        v, gain = rest.value, float(self.gain.abs().max())
        lipschitz, eps = gain * chain.lipschitz, torch.finfo(v.dtype).eps
        rounded = next((m for m in maps if m.dtype == v.dtype), maps[0])
        _, units = rounded(v, torch.arange(len(v), device=v.device))
        wide = widest(v.device)
        flat = log_scale.flatten(1).to(wide)
        entries = ROUNDING * eps * (1 + LIMIT) * math.sqrt(2 * flat.shape[1])
        moved = lipschitz * rest.bound + gain * eps * units.to(wide) + entries
        moved = moved + ROUNDING * eps * (wide_norm(u) + wide_norm(mean))
        reach = (flat.amax(1) + moved).clamp(max=LIMIT).exp() * z.flatten(1).abs().amax(1).to(wide)
        return torch.hypot(torch.ones_like(reach), reach) * moved * (1 + ROUNDING * eps)
