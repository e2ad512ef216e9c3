r"""Hamiltonian Monte Carlo of several chains together, and what tells whether they have mixed.

References:
    MCMC using Hamiltonian dynamics (Neal, 2011). Inference from iterative simulation (Gelman and
    Rubin, 1992), and Rank-normalization, folding, and localization: an improved R-hat (Vehtari et
    al., 2021), section 3: split chains, and the effective sample size by Geyer's initial monotone
    sequence of autocorrelations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.tensors import sum_per_sample

__all__ = ["Samples", "effective_sample_size", "hamiltonian", "split_r_hat"]

Energy = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Of points ``(C, D)``: minus the log-densities ``(C,)`` and their gradients ``(C, D)``."""

GOAL = 0.8
"""Share of proposals that shall be accepted: what the warm-up sets the step for."""


@final
@dataclass(frozen=True)
class Samples:
    """Chains.

    Attributes:
        points: ``(C, N, D)``, N of each of the C chains.
        accepted: The share of proposals that was taken after the warm-up.
        step: The step of the leapfrog method that the warm-up has found.
    """

    points: Tensor
    accepted: float
    step: float


def hamiltonian(
    energy: Energy,
    start: Tensor,
    count: int,
    *,
    warm_up: int,
    leaps: int,
    step: float,
    seed: int,
) -> Samples:
    """Samples of the density :math:`e^{-energy}`, after a warm-up that sets the step.

    Arguments:
        energy: Of all chains.
        start: ``(C, D)``.
        count: Samples of each chain.
        warm_up: Proposals before them.
        leaps: Leapfrog steps of a proposal at most. Each takes 1 to so many, all equally likely:
            where all go equally far, a normal density may be crossed to its other side again and
            again, and squares stay what they were.
        step: Their length at first; each proposal's is drawn from 0.8 to 1.2 times that.
        seed: Of the random stream.
    """
    generator = torch.Generator().manual_seed(seed)
    x = start.detach()
    value, gradient = energy(x)
    kept, taken = [], 0.0
    for number in range(warm_up + count):
        length = step * (0.8 + 0.4 * float(torch.rand((), generator=generator)))
        last = int(torch.randint(leaps, (), generator=generator))
        momentum = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        point, slope = x, gradient
        moved = momentum - length / 2 * slope
        for leap in range(last + 1):
            point = point + length * moved
            new_value, slope = energy(point)
            moved = moved - (length if leap < last else length / 2) * slope
        before = value + sum_per_sample(momentum.square()) / 2
        after = new_value + sum_per_sample(moved.square()) / 2
        # An energy that is not finite is never accepted.
        share = (before - after).exp().clamp(max=1).nan_to_num(0.0)
        takes = torch.rand(len(x), generator=generator, dtype=x.dtype) < share
        x = torch.where(takes[:, None], point, x)
        gradient = torch.where(takes[:, None], slope, gradient)
        value = torch.where(takes, new_value, value)
        if number < warm_up:
            step *= float((share.mean() - GOAL).exp()) ** 0.5
        else:
            kept.append(x)
            taken += float(takes.double().mean()) / count
    return Samples(torch.stack(kept, 1), taken, step)


def split_r_hat(chains: Tensor) -> Tensor:
    """The potential scale reduction ``(D,)`` of chains ``(C, N, D)``, each cut into halves.

    Near 1 where the chains tell the same; above 1.01 they have not mixed.
    """
    halves = _halves(chains)
    count = halves.shape[1]
    within = halves.var(1).mean(0)
    between = halves.mean(1).var(0)
    return ((count - 1) / count + between / within).sqrt()


def effective_sample_size(chains: Tensor) -> Tensor:
    """How many independent samples ``(D,)`` have a mean as exact as that of ``(C, N, D)``."""
    halves = _halves(chains)
    number, count, _ = halves.shape
    centred = halves - halves.mean(1, keepdim=True)
    size = 2 * count
    spectrum = torch.fft.rfft(centred, size, dim=1).abs().square()
    covariance = torch.fft.irfft(spectrum, size, dim=1)[:, :count] / count
    within = halves.var(1).mean(0)
    total = (count - 1) / count * within + halves.mean(1).var(0)
    correlation = 1 - (within - covariance.mean(0) * count / (count - 1)) / total
    correlation[0] = 1
    even = count - count % 2
    pairs = correlation[:even].reshape(even // 2, 2, -1).sum(1)
    # Pairs are positive and fall in theory: what does not is noise, and ends the sum.
    positive = (pairs > 0).to(pairs.dtype).cumprod(0)
    falling = (pairs.cummin(0).values * positive).sum(0)
    # Where samples alternate the sum can vanish: no more than n log10 n of them are claimed.
    most = math.log10(number * count)
    return number * count / (2 * falling - 1).clamp_min(1 / most)


def _halves(chains: Tensor) -> Tensor:
    half = chains.shape[1] // 2
    return torch.cat([chains[:, :half], chains[:, half : 2 * half]])
