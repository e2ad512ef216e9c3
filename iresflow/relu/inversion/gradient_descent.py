"""The baseline: gradient descent on the latent code."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from tqdm import tqdm

from iresflow.errors import NonFiniteError
from iresflow.relu.networks.network import Network

__all__ = ["Descent", "descend"]


@final
@dataclass(frozen=True, eq=False)
class Descent:
    """Codes found by gradient descent.

    Attributes:
        z: The best code of each observation over all restarts, ``(B, k)``.
        error: Its squared l2 distance to the observation, ``(B,)``.
        steps: Gradient steps taken by each start.
        converged: Where the best start ended with a gradient that is small, ``(B,)`` bool.
    """

    z: Tensor
    error: Tensor
    steps: int
    converged: Tensor


def descend(
    network: Network,
    x: Tensor,
    *,
    steps: int = 2000,
    learning_rate: float = 1e-2,
    restarts: int = 1,
    tolerance: float = 1e-6,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Descent:
    """Minimises ``|G(z) - x|^2`` over z by Adam, from random starts, for a batch of observations.

    Arguments:
        network: G.
        x: Observations ``(B, n)``.
        steps: Gradient steps at most; all starts stop once every gradient is small.
        learning_rate: Of Adam.
        restarts: Starts for each observation, from N(0, I).
        tolerance: Of the largest entry of the gradient, per unit of ``|x|``, that counts as small.
        generator: Of the starts.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: another shape, values that are not finite, or a number out of range.
        NonFiniteError: the codes diverged.
    """
    x = x.double()
    if x.dim() != 2 or x.shape[1] != network.out_size or len(x) == 0:
        raise ValueError(
            f"observations have shape {tuple(x.shape)}; allowed is (B, {network.out_size})"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("observations hold values that are not finite")
    limits = {"steps": steps, "restarts": restarts, "learning_rate": learning_rate}
    for name, value in limits.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; allowed is above 0")
    shape = (restarts * len(x), network.in_size)
    z = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    target = x.repeat(restarts, 1)
    limit = tolerance * target.norm(dim=1).clamp(min=1e-12)
    optimizer = torch.optim.Adam([z], lr=learning_rate)
    taken = 0
    for _ in tqdm(
        range(steps), desc="descent", disable=None if progress else True, dynamic_ncols=True
    ):
        _, small = _step(network, z, target, limit)
        if bool(small.all()):
            break
        optimizer.step()
        taken += 1
    errors, small = _step(network, z, target, limit)
    best = errors.view(restarts, -1).argmin(0)
    index = best * len(x) + torch.arange(len(x))
    return Descent(z.detach()[index], errors[index], taken, small[index])


def _step(network: Network, z: Tensor, target: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Errors ``(B,)`` at z, whose gradients it sets, and which of these are small."""
    output = z
    for layer in network.layers:
        output = layer(output)
    errors = (output - target).square().sum(1)
    (z.grad,) = torch.autograd.grad(errors.sum(), z)
    if not bool(torch.isfinite(z.grad).all()):
        raise NonFiniteError("gradient descent diverged; lower learning_rate")
    return errors.detach(), z.grad.abs().amax(1) <= limit
