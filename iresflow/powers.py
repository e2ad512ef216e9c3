"""Weighted sums of the powers of a Jacobian, term by term, and when each of them ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.tensors import norms

__all__ = ["Determinant", "KrylovFound", "KrylovSpace", "PowerSums", "Rows", "Series"]

Rows = Tensor | slice
"""Which samples of a batch: their indices ``(N,)``, or a slice of them."""


@final
@dataclass(frozen=True)
class PowerSums:
    r"""Weighted sums of the powers :math:`u_k = (J^\top)^k v` of K directions, k = 0, 1, ...

    Attributes:
        neumann, weighted: Two sums, ``(K, B, *event)``, with weights of their own.
        taken: The number of their terms, ``(K, B)``.
        size: The norm of the last term's power, ``(K, B)``.
        growth: The largest factor by which a product made a power longer, ``(K, B)``.
    """

    neumann: Tensor
    weighted: Tensor
    taken: Tensor
    size: Tensor
    growth: Tensor

    @staticmethod
    def start(v: Tensor) -> "PowerSums":
        """The sums of the first term alone, with weights of 1."""
        size = norms(v)
        return PowerSums(v.clone(), v.clone(), torch.ones_like(size), size, torch.zeros_like(size))

    def plus(self, u: Tensor, weights: tuple[float, float]) -> "PowerSums":
        """With the next power u in all sums, which are overwritten."""
        size = norms(u)
        growth = torch.maximum(self.growth, _ratio(size, self.size))
        self.neumann.add_(u, alpha=weights[0])
        self.weighted.add_(u, alpha=weights[1])
        return PowerSums(self.neumann, self.weighted, self.taken + 1, size, growth)

    def plus_some(
        self, u: Tensor, weights: tuple[float, float], index: Rows, running: Tensor
    ) -> "PowerSums":
        """The same for samples ``index`` (N,) alone, and of these for the running (K, N)."""
        before, size = self.size[:, index], norms(u)
        growth = torch.where(running, _ratio(size, before), 0)
        self.growth[:, index] = torch.maximum(self.growth[:, index], growth)
        self.size[:, index] = torch.where(running, size, before)
        self.taken[:, index] += running
        # Directions that have ended are multiplied on, and their terms not added.
        part = u.where(running.reshape(*running.shape, *[1] * (u.ndim - 2)), 0)
        self.neumann[:, index] += weights[0] * part
        self.weighted[:, index] += weights[1] * part
        return self


@final
@dataclass(frozen=True)
class KrylovSpace:
    r"""How Krylov spaces of :math:`J^\top` grow, see `iresflow.logdet.krylov`.

    Attributes:
        nodes, weights: Of the quadrature, ``(q,)`` in float64; the last node is 1.
        steps: At most, and no more than dimensions.
        enough: A space has grown enough when the bound of its error is at most this; 0 for never.
        lipschitz: A certified bound of the norm of J, or None.
        uncertified: What the norm of J is taken to be at most where nothing is certified.
        symmetric: Whether J is known to be symmetric.
    """

    nodes: Tensor
    weights: Tensor
    steps: int
    enough: float
    lipschitz: float | None
    uncertified: float
    symmetric: bool = False


@final
@dataclass(frozen=True)
class KrylovFound:
    """What K spaces for each of B samples ended with.

    Attributes:
        numbers: ``(5, K, B)`` in float64: steps, the value, the bound of its error, that of the
            left vector's, and the largest norm of a product.
        left: The left vectors, ``(K, B, *event)``.
    """

    numbers: Tensor
    left: Tensor


@final
@dataclass(frozen=True)
class Determinant:
    r"""What whole Jacobians tell of each sample.

    Attributes:
        value: :math:`\log\det(I + J)`, ``(B,)``; NaN where the determinant is not positive.
        longest: The norm of the longest column of J, ``(B,)``.
    """

    value: Tensor
    longest: Tensor


@final
@dataclass(frozen=True)
class Series:
    r"""Two series in the powers :math:`u_k = (J^\top)^k v` of K directions, k = 0, 1, ...

    Attributes:
        weights: Those of :math:`u_k` in `PowerSums.neumann` and `PowerSums.weighted`; both 1 for
            k = 0. As many terms at most.
        terms: How many each direction takes, ``(K, B)`` integers from 1; None for all.
        enough: A direction ends, ``(K, B)``, at the first k from 2 at which
            :math:`\sum_{j \ge 1} |u_{k-1}| r^j / k` is at most this, where r is the largest factor
            by which a product made one of its powers longer; None for never.
    """

    weights: Sequence[tuple[float, float]]
    terms: Tensor | None = None
    enough: Tensor | None = None

    @property
    def fixed(self) -> bool:
        """Whether all directions take all terms, whatever they find."""
        return self.terms is None and self.enough is None

    def goes_on(self, k: int, index: Rows, sums: PowerSums) -> Tensor:
        """Which directions of the samples ``index`` (N,) take term k, ``(K, N)``."""
        going = torch.full_like(sums.size[:, index], k < len(self.weights), dtype=torch.bool)
        if self.terms is not None:
            going &= self.terms[:, index] > k
        if self.enough is not None and k > 1:
            rate = sums.growth[:, index]
            left = k * self.enough[:, index] * (1 - rate)
            going &= sums.size[:, index] * rate > left
        return going


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return after / before.clamp_min(torch.finfo(before.dtype).tiny)
