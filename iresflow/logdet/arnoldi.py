"""The Arnoldi process of many probes at once, and the integrals that follow from it.

`iresflow.logdet.krylov` has the formulas and their sources.
"""

import copy
import functools
import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from iresflow.linearization import Jacobian
from iresflow.logdet.base import EXPANSION
from iresflow.powers import KrylovSpace
from iresflow.tensors import dot, spread

__all__ = ["Arnoldi", "Found"]

UNCERTIFIED = 0.95
"""What the norm of J is taken to be at most where nothing is certified."""


@final
@dataclass(frozen=True)
class Found:
    """What each probe of each sample ended with, ``(K, B)``; left is ``(K, B, *event)``."""

    value: Tensor
    truncation: Tensor
    gradient_truncation: Tensor
    products: Tensor
    left: Tensor

    @staticmethod
    def empty(v: Tensor) -> "Found":
        value, truncation, gradient, products = v.new_empty(4, *v.shape[:2])
        return Found(value, truncation, gradient, products, torch.empty_like(v))

    @staticmethod
    def fused(jacobian: Jacobian, v: Tensor, steps: int, enough: float) -> "Found | None":
        """All at once where there is such a way, or None."""
        bound = jacobian.lipschitz
        nodes, weights = _rule(UNCERTIFIED if bound is None else bound, v.device)
        space = KrylovSpace(nodes, weights, steps, enough, bound, UNCERTIFIED, jacobian.symmetric)
        found = jacobian.fused_krylov(v, space)
        if found is None:
            return None
        *numbers, growth = found.numbers
        taken, value, error, slack = (n.to(v.dtype) for n in numbers)
        value = value.masked_fill(~(growth <= EXPANSION), torch.nan)
        return Found(value, error, slack, taken, found.left)


@final
class Arnoldi:
    """The Arnoldi process of K probes for each of B samples, and what is integrated along it.

    Arguments:
        v: The probes, ``(K, B, *event)``.
        lipschitz: A certified bound of the norm of J, or None.
        symmetric: Whether J is known to be symmetric.
    """

    def __init__(self, v: Tensor, lipschitz: float | None, symmetric: bool = False) -> None:
        size = dot(v, v).sqrt()
        self.symmetric = symmetric
        self.square = size.double() ** 2
        self.basis = [v / spread(size, v)]
        self.columns: list[Tensor] = []  # h_{1..j,j}, each (j, K, B)
        self.subdiagonal: list[Tensor] = []  # h_{j+1,j}, each (K, B)
        self.certified = lipschitz
        self.growth = torch.zeros_like(self.square)  # the largest |A v_j|
        self.stalled = torch.zeros_like(self.square, dtype=torch.bool)
        self.rest = torch.zeros_like(self.square)  # h_{m+1,m}, or the rounding where that is more
        rule = _rule(UNCERTIFIED if lipschitz is None else lipschitz, v.device)
        self.nodes, self.weights = rule
        # Of the probes that have ended: their steps, value, and the bounds of its error and of the
        # left vector's; zeros for the others.
        self.ended = self.square.new_zeros(4, *self.square.shape)
        # The LU factorisation of I + tH at all nodes, (K, B, q), and what follows from it.
        self.lower: list[Tensor] = []  # l_2, l_3, ...: the subdiagonal of L
        self.row: list[Tensor] = []  # the first row of the inverse of U
        self.forward = self.square[..., None].new_ones(*size.shape, len(self.nodes))
        self.corner = torch.zeros_like(self.forward)  # e_1^T (I + tH)^-1 e_1
        self.last = torch.zeros_like(self.forward)  # y(t) = e_m^T (I + tH)^-1 e_1

    @property
    def taken(self) -> Tensor:
        """Steps that each probe took until it ended, ``(K, B)``; 0 where it has not."""
        return self.ended[0]

    @property
    def running(self) -> Tensor:
        """Which probes have not ended, ``(K, B)``."""
        return self.taken == 0

    def extend(self, jacobian: Jacobian) -> None:
        """One step: a product, its orthogonalisation, and the new column of all factors."""
        new = jacobian.vjp(self.basis[-1])
        column = self.square.new_zeros(len(self.basis), *self.square.shape)
        before = dot(new, new).double().sqrt()
        for _ in range(2):  # twice is enough (Giraud et al., 2005)
            for i, old in enumerate(self.basis):
                part = dot(old, new)
                column[i] += part
                new = new.addcmul(spread(part, new), old, value=-1)
        below = dot(new, new).sqrt()
        self.growth = torch.maximum(self.growth, before)
        # What is left of a product that lay in the space is rounding: the space is invariant.
        noise = 8 * torch.finfo(new.dtype).eps * before
        self.stalled |= below.double() <= noise
        self.rest = torch.maximum(below.double(), noise)
        self.subdiagonal.append(below.double().masked_fill(self.stalled, 0))
        self.columns.append(column)
        self.basis.append(new / spread(below.clamp_min(torch.finfo(new.dtype).tiny), new))
        self._factorise(column)

    def _factorise(self, column: Tensor) -> None:
        t, j = self.nodes, len(self.columns)
        u = t * column[0][..., None] + (1 if j == 1 else 0)
        total = torch.zeros_like(u)
        for i in range(1, j):
            total += self.row[i - 1] * u
            u = t * column[i][..., None] + (1 if i == j - 1 else 0) - self.lower[i - 1] * u
        first = ((1 if j == 1 else 0) - total) / u
        self.row.append(first)
        self.corner = self.corner + first * self.forward
        self.last = self.forward / u
        lower = t * self.subdiagonal[-1][..., None] / u
        self.lower.append(lower)
        self.forward = -lower * self.forward

    def value(self) -> Tensor:
        r""":math:`|v|^2 e_1^\top \log(I + H) e_1`, ``(K, B)``; NaN where J expands."""
        integral = ((1 - self.corner) / self.nodes * self.weights).sum(-1)
        return (self.square * integral).masked_fill(self.growth > EXPANSION, torch.nan)

    def error_bound(self, lipschitz: Tensor | float) -> Tensor:
        """Upper bound ``(K, B)`` of the error of `value`, given a bound of the norm of J."""
        reach = self.nodes * (lipschitz if isinstance(lipschitz, float) else lipschitz[..., None])
        part = self.rest[..., None] * self.last.abs()
        most = torch.minimum(reach, self.nodes * part) if self.symmetric else reach
        return self.square * (part * most / (1 - reach) * self.weights).sum(-1)

    def error_estimate(self) -> Tensor:
        """The bound where one is certified; else what it is for the growth that was seen."""
        if self.certified is not None:
            return self.error_bound(self.certified)
        return self.error_bound(self.growth.clamp(max=UNCERTIFIED))

    def end(self, ending: Tensor) -> None:
        """Notes what some probes ``(K, B)`` have found, where they have not ended before."""
        if self.certified is None:
            bound = slack = torch.where(self.rest > 0, torch.inf, 0.0)
        else:
            bound = self.error_bound(self.certified)
            slack = self.rest * self.last[..., -1].abs() / (1 - self.certified)
        steps = torch.full_like(self.rest, len(self.columns))
        found = torch.stack([steps, self.value(), bound, slack])
        self.ended = torch.where(ending & self.running, found, self.ended)

    def write(self, result: Found, index: Tensor) -> None:
        """Writes what the probes of the samples ``index`` (N,) ended with."""
        found = self.ended.to(result.value.dtype)
        kinds = (result.products, result.value, result.truncation, result.gradient_truncation)
        for kind, numbers in zip(kinds, found, strict=True):
            kind[:, index] = numbers
        left = torch.zeros_like(self.basis[0])
        for step, (weight, vector) in enumerate(zip(self._solution(), self.basis, strict=False)):
            part = spread(weight, vector) * vector
            left += part.where(spread(self.taken, vector) > step, 0)
        result.left[:, index] = left

    def _solution(self) -> Tensor:
        """Coefficients ``(m, K, B)`` of w in the basis: (I + H)^-1 e_1 |v|, each H with as many
        rows as its probe took steps."""
        m = len(self.columns)
        identity = torch.eye(m, dtype=torch.float64, device=self.square.device)
        matrix = identity.expand(*self.square.shape, m, m).clone()
        for j, column in enumerate(self.columns):
            matrix[..., : j + 1, j] += column.movedim(0, -1)
        for j, below in enumerate(self.subdiagonal[:-1]):
            matrix[..., j + 1, j] += below
        inside = torch.arange(m, device=self.square.device) < self.taken[..., None]
        matrix = matrix.where(inside[..., None] & inside[..., None, :], identity)
        start = torch.zeros_like(matrix[..., :1])
        start[..., 0, 0] = self.square.sqrt()
        # Without its check, for which the host would wait.
        solution, failed = torch.linalg.solve_ex(matrix, start)
        solution = solution.masked_fill((failed != 0)[..., None, None], torch.nan)
        return solution[..., 0].movedim(-1, 0)

    def rows(self, index: Tensor) -> "Arnoldi":
        """The process of some samples only: ``(N,)`` indices, or a mask ``(B,)``."""
        part = copy.copy(self)
        for name in ("square", "growth", "stalled", "rest", "forward", "corner", "last"):
            setattr(part, name, getattr(self, name)[:, index])
        for name in ("basis", "subdiagonal", "lower", "row"):
            setattr(part, name, [x[:, index] for x in getattr(self, name)])
        part.columns = [column[:, :, index] for column in self.columns]
        part.ended = self.ended[:, :, index]
        return part


@functools.lru_cache(maxsize=64)
def _rule(lipschitz: float, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights for integrals over t in [0, 1], and the node 1 with weight 0.

    What is integrated is analytic in t but for poles at :math:`|t| \ge 1/L`, which come close to
    1 for L near 1. In :math:`s = -\log(1 - tL)`, on :math:`[0, S]`, they keep a distance of
    :math:`\pi/3` at least. So the error of n nodes falls like :math:`\rho^{-2n}` with the
    Bernstein ellipse of half-width :math:`\pi/4` (Trefethen, 2008, theorem 4.5).
    """
    lipschitz = max(lipschitz, 1e-3)
    end = -math.log1p(-lipschitz)
    count = math.ceil(18 / math.asinh(math.pi / 2 / end)) + 4
    x, w = np.polynomial.legendre.leggauss(count)
    s = end * (x + 1) / 2
    nodes = -np.expm1(-s) / lipschitz
    weights = end * w / 2 * np.exp(-s) / lipschitz
    numbers = torch.from_numpy(np.stack([np.append(nodes, 1.0), np.append(weights, 0.0)]))
    on_device = numbers.to(device, non_blocking=True)
    return on_device[0], on_device[1]
