"""Two inverse problems for learned operators, and the classical filters that they stand beside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.inverse_problems import LearnedOperator, LinearOperator, SelfAdjoint

__all__ = [
    "FILTERS",
    "Problem",
    "Spectrum",
    "blurred_images",
    "deviation_of",
    "measured",
    "smoothed_signals",
]

BINOMIAL = torch.tensor([1.0, 8.0, 28.0, 56.0, 70.0, 56.0, 28.0, 8.0, 1.0]) / 256
"""Taps of a blur whose symbol, a power of a cosine, is nowhere negative."""

JUMPS = 4
"""Steps in a random signal."""

KEPT = 4.0
"""Frequency that the smoothing halves."""


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """An operator, samples of what is looked for, and networks that may learn the operator.

    Attributes:
        name: Of tables.
        operator: K.
        train, held, test: Samples ``(N, *shape)``.
        networks: By name, from a Lipschitz limit to a new network.
    """

    name: str
    operator: SelfAdjoint
    train: Tensor
    held: Tensor
    test: Tensor
    networks: Mapping[str, Callable[[float], LearnedOperator]]


def smoothed_signals(size: int, train: int, test: int, hidden: int, seed: int) -> Problem:
    r"""Steps in one dimension, smoothed by :math:`(I - s^2 \Delta)^{-1}` on a circle.

    The eigenvalue of frequency k is :math:`1 / (1 + (k / k_0)^2)`: a limit L keeps the frequencies
    up to about :math:`k_0 / \sqrt{1 - L}`.
    """
    generator = torch.Generator().manual_seed(seed)
    symbol = 1 / (1 + (torch.arange(size // 2 + 1) / KEPT).square())

    def signals(count: int) -> Tensor:
        edges = size * torch.rand(count, JUMPS, 1, generator=generator)
        heights = torch.randn(count, JUMPS, 1, generator=generator)
        heights = heights - heights.mean(1, keepdim=True)
        return (heights * (torch.arange(size) > edges)).sum(1)

    def smooth(x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * symbol.to(x), n=size)

    return Problem(
        "smoothing",
        SelfAdjoint.of(LinearOperator(smooth, smooth, (size,))),
        signals(train),
        signals(test),
        signals(test),
        {
            "linear": lambda limit: LearnedOperator((size,), hidden=(), lipschitz=limit),
            "network": lambda limit: LearnedOperator((size,), hidden=(hidden,), lipschitz=limit),
        },
    )


def blurred_images(train: Tensor, held: Tensor, test: Tensor, hidden: int) -> Problem:
    """Images ``(N, C, H, W)`` in [0, 1], blurred by a symmetric kernel with zeros outside."""
    shape = tuple(train.shape[1:])

    def blur(x: Tensor) -> Tensor:
        taps = BINOMIAL.to(x)
        planes = F.conv2d(x.flatten(0, 1)[:, None], taps.view(1, 1, -1, 1), padding=(4, 0))
        return F.conv2d(planes, taps.view(1, 1, 1, -1), padding=(0, 4)).reshape(x.shape)

    def linear(limit: float) -> LearnedOperator:
        return LearnedOperator(shape, hidden=(), kernels=(9,), lipschitz=limit)

    def network(limit: float) -> LearnedOperator:
        return LearnedOperator(shape, hidden=hidden, kernels=(5, 5), lipschitz=limit)

    operator = SelfAdjoint.of(LinearOperator(blur, blur, shape))
    networks = {"linear": linear, "network": network}
    return Problem("blur", operator, train, held, test, networks)


def measured(problem: Problem, noise: float, seed: int) -> Tensor:
    """What is inverted for the test samples.

    Arguments:
        problem: With the operator.
        noise: Standard deviation of what is added to A x, relative to A x in root mean square.
        seed: Of the noise.
    """
    deviation = _deviation(problem, problem.test, noise)
    generator = torch.Generator().manual_seed(seed)
    return problem.operator.observed(problem.test, deviation, generator)


def deviation_of(problem: Problem, noise: float) -> float:
    """The standard deviation in A x of a relative noise, as training samples tell it."""
    return _deviation(problem, problem.train, noise)


def _deviation(problem: Problem, x: Tensor, noise: float) -> float:
    return noise * float(problem.operator.forward(x).square().mean().sqrt())


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues ``(D,)`` and eigenvectors ``(D, D)`` of K, in float64."""

    values: Tensor
    vectors: Tensor

    @staticmethod
    def of(problem: Problem) -> "Spectrum":
        """Of the dense matrix."""
        x = problem.test[:1].double()
        basis = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
        matrix = problem.operator(basis).flatten(1)
        return Spectrum(*torch.linalg.eigh((matrix + matrix.mT) / 2))

    def filter(self, name: str, parameter: float) -> Callable[[Tensor], Tensor]:
        """The reconstruction by one of `FILTERS`, of z ``(N, *shape)``."""
        gain = FILTERS[name](self.values, parameter)

        def reconstructed(z: Tensor) -> Tensor:
            coefficients = z.flatten(1).double() @ self.vectors
            return ((coefficients * gain) @ self.vectors.mT).reshape(z.shape)

        return reconstructed


FILTERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "TSVD": lambda values, a: torch.where(values >= a, 1 / values.clamp_min(a), 0.0),
    "Tikhonov": lambda values, a: 1 / (values.clamp_min(0) + a),
    "squared soft TSVD": lambda values, a: 1 / values.clamp_min(a),
}
"""Gains of eigenvalues ``(D,)`` of K for a parameter; of normal equations Tikhonov's is that of A,
and else Lavrentiev's. The last is that of the best linear F with the limit 1 - a."""
