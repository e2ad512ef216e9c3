r"""Log-determinants from Krylov subspaces: the Arnoldi form, one product with the Jacobian a step.

With :math:`A = J^\top` and an orthonormal basis :math:`V_m` of the Krylov space of a probe v,
:math:`A V_m = V_m H_m + h_{m+1,m} v_{m+1} e_m^\top`, and

.. math:: v^\top \log(I + J) v = v^\top \log(I + A) v \approx |v|^2 e_1^\top \log(I + H_m) e_1.

This interpolates the logarithm at the Ritz values, where a power series expands it at zero: exact
for polynomials of degree m, and far better than the series for spectra that are nearly real.

The error. :math:`\log(I+A)v = \int_0^1 (v - x_t) / t \, dt` with :math:`(I + tA) x_t = v`. In
the Krylov space :math:`x_t` becomes :math:`V_m (I + tH_m)^{-1} e_1 |v|`, with the residual
:math:`-t h_{m+1,m} y(t) |v| v_{m+1}` where :math:`y(t) = e_m^\top (I+tH_m)^{-1} e_1` (Saad, 2003,
section 6.4.1). So the error is :math:`h_{m+1,m} |v| \int_0^1 y(t)\, v^\top (I+tA)^{-1}
v_{m+1} \, dt`, and since v and :math:`v_{m+1}` are orthogonal, with :math:`\|J\| \le L < 1`,

.. math:: |\text{error}| \le |v|^2 h_{m+1,m} \int_0^1 |y(t)| \frac{t L}{1 - t L} dt.

Both integrals are taken by Gauss-Legendre quadrature in :math:`s = -\log(1 - tL)`, of so many
nodes that its own error is below the rounding; :math:`(I + tH_m)^{-1}` at all nodes grows with m
by an LU factorisation.

References:
    Iterative Methods for Sparse Linear Systems (Saad, 2003), chapter 6. Functions of Matrices
    (Higham, 2008), chapter 13. Fast estimation of tr f(A) via stochastic Lanczos quadrature
    (Ubaru et al., 2017) for symmetric matrices. The error bound is derived here.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from iresflow.linearization import Jacobian, Linearization
from iresflow.logdet.base import EXPANSION, Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes, squared_standard_error
from iresflow.streams import Stream
from iresflow.tensors import dot, spread

__all__ = ["Krylov"]

SHRINK = 0.25
"""Share of a batch that must have finished before it leaves: leaving copies the slopes, for about
a fifth of the cost of a product."""


@final
@dataclass(frozen=True)
class Krylov(LogDetEstimator):
    r""":math:`v^\top \log(I + J) v` from the Arnoldi process on :math:`J^\top`, averaged over v.

    Each probe of each sample stops by itself, as soon as the rigorous bound of its truncation
    error is below the tolerance. Without a certified Lipschitz bound (in training) the bound is
    evaluated with the largest growth that was measured, which is an estimate.

    The surrogate is :math:`w^\top J v` with :math:`w = V_m (I + H_m)^{-1} e_1 |v|` from the same
    space, which approximates :math:`(I + J)^{-\top} v`: the gradient of
    :math:`\operatorname{tr}\log(I+J)` needs no random truncation. Its residual is known, and
    bounds the bias.

    Arguments:
        steps: Jacobian at most, for each probe.
        tol: Truncation error of each block in nats per dimension at which a probe stops; 0 takes
            all steps.
        probes: Number of probes K for each sample.
        probe: Name of their distribution, ``rademacher`` or ``gaussian``.

    Raises:
        ValueError: steps or probes below 1, a negative tolerance, or an unknown distribution.
    """

    steps: int = 64
    tol: float = 1e-6
    probes: int = 1
    probe: str = "rademacher"
    kind: ClassVar[Kind] = "biased"

    def __post_init__(self) -> None:
        check_settings(self.probes, self.probe, self.tol, steps=self.steps)

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        v = draw_probes(self.probe, self.probes, linearization.point, generator)
        with torch.no_grad():
            result, process = _Result.empty(v), _Arnoldi(v, linearization.lipschitz)
            jacobian, dim = linearization, v[0, 0].numel()
            index = torch.arange(v.shape[1], device=v.device)
            for step in range(1, min(self.steps, dim) + 1):
                process.extend(jacobian)
                last = step == min(self.steps, dim)
                if not (self.tol or last):
                    continue
                finished = process.stalled | (process.error_estimate() <= self.tol * dim)
                if last:
                    finished = torch.ones_like(finished)
                process.write(result, index, finished & ~result.done[:, index], step)
                running = (~result.done[:, index].all(0)).nonzero()[:, 0]
                if len(running) == 0:
                    break
                if len(index) - len(running) >= SHRINK * len(index):
                    jacobian, index = jacobian.narrow(running), index[running]
                    process.narrow(running)
        surrogate = linearization.bilinear(result.left, v).mean(0)
        return LogDetEstimate(
            value=result.value.mean(0),
            surrogate=surrogate,
            variance=squared_standard_error(result.value),
            truncation=result.truncation.mean(0),
            gradient_truncation=result.gradient_truncation.amax(0),
            products=result.products.mean(0),
            degrees=self.probes - 1,
        )


@dataclass(frozen=True)
class _Result:
    """What each probe of each sample ended with, ``(K, B)``; left is ``(K, B, *event)``."""

    value: Tensor
    truncation: Tensor
    gradient_truncation: Tensor
    products: Tensor
    done: Tensor
    left: Tensor

    @staticmethod
    def empty(v: Tensor) -> "_Result":
        zeros = [v.new_zeros(v.shape[:2]) for _ in range(4)]
        done = torch.zeros(v.shape[:2], dtype=torch.bool, device=v.device)
        return _Result(*zeros, done, torch.zeros_like(v))


class _Arnoldi:
    """The Arnoldi process of K probes for each of B samples, and what is integrated along it.

    Arguments:
        v: The probes, ``(K, B, *event)``.
        lipschitz: A certified bound of the norm of J, or None.
    """

    def __init__(self, v: Tensor, lipschitz: float | None) -> None:
        size = dot(v, v).sqrt()
        self.square = size.double() ** 2
        self.basis = [v / spread(size, v)]
        self.columns: list[Tensor] = []  # h_{1..j,j}, each (j, K, B)
        self.subdiagonal: list[Tensor] = []  # h_{j+1,j}, each (K, B)
        self.certified = lipschitz
        self.growth = torch.zeros_like(self.square)  # the largest |A v_j|
        self.stalled = torch.zeros_like(self.square, dtype=torch.bool)
        self.rest = torch.zeros_like(self.square)  # h_{m+1,m}, or the rounding where that is more
        rule = _rule(UNCERTIFIED if lipschitz is None else lipschitz)
        self.nodes, self.weights = (numbers.to(v.device) for numbers in rule)
        # The LU factorisation of I + tH at all nodes, (K, B, q), and what follows from it.
        self.lower: list[Tensor] = []  # l_2, l_3, ...: the subdiagonal of L
        self.row: list[Tensor] = []  # the first row of the inverse of U
        self.forward = self.square[..., None].new_ones(*size.shape, len(self.nodes))
        self.corner = torch.zeros_like(self.forward)  # e_1^T (I + tH)^-1 e_1
        self.last = torch.zeros_like(self.forward)  # y(t) = e_m^T (I + tH)^-1 e_1

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
        integral = (self.last.abs() * reach / (1 - reach) * self.weights).sum(-1)
        return self.square * self.rest * integral

    def error_estimate(self) -> Tensor:
        """The bound where one is certified; else what it is for the growth that was seen."""
        if self.certified is not None:
            return self.error_bound(self.certified)
        return self.error_bound(self.growth.clamp(max=UNCERTIFIED))

    def write(self, result: "_Result", index: Tensor, rows: Tensor, step: int) -> None:
        """Writes what the probes ``rows`` (K, B) of the samples ``index`` ended with."""
        k, b = rows.nonzero(as_tuple=True)
        where = (k, index[b])
        dtype = result.value.dtype
        result.value[where] = self.value()[k, b].to(dtype)
        result.products[where] = step
        result.done[where] = True
        if self.certified is None:
            infinite = torch.where(self.rest[k, b] > 0, torch.inf, 0.0).to(dtype)
            result.truncation[where] = result.gradient_truncation[where] = infinite
        else:
            bound = self.error_bound(self.certified)[k, b]
            residual = (self.rest * self.last[..., -1].abs())[k, b]
            result.truncation[where] = bound.to(dtype)
            result.gradient_truncation[where] = (residual / (1 - self.certified)).to(dtype)
        solution = self._solution()[:, k, b].to(dtype)
        left = torch.zeros_like(result.left[where])
        for weight, vector in zip(solution, self.basis, strict=False):
            left += weight.reshape(-1, *[1] * (left.ndim - 1)) * vector[k, b]
        result.left[where] = left

    def _solution(self) -> Tensor:
        """Coefficients ``(m, K, B)`` of w in the basis: (I + H)^-1 e_1 |v|."""
        m = len(self.columns)
        matrix = torch.eye(m, dtype=torch.float64, device=self.square.device)
        matrix = matrix.expand(*self.square.shape, m, m).clone()
        for j, column in enumerate(self.columns):
            matrix[..., : j + 1, j] += column.movedim(0, -1)
        for j, below in enumerate(self.subdiagonal[:-1]):
            matrix[..., j + 1, j] += below
        start = torch.zeros_like(matrix[..., :1])
        start[..., 0, 0] = self.square.sqrt()
        return torch.linalg.solve(matrix, start)[..., 0].movedim(-1, 0)

    def narrow(self, running: Tensor) -> None:
        """Goes on with some samples only, ``(N,)`` indices."""
        for name in ("square", "growth", "stalled", "rest", "forward", "corner", "last"):
            setattr(self, name, getattr(self, name)[:, running])
        for name in ("basis", "subdiagonal", "lower", "row"):
            setattr(self, name, [x[:, running] for x in getattr(self, name)])
        self.columns = [column[:, :, running] for column in self.columns]


UNCERTIFIED = 0.95
"""What the norm of J is taken to be at most where nothing is certified."""


@functools.lru_cache(maxsize=64)
def _rule(lipschitz: float) -> tuple[Tensor, Tensor]:
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
    return torch.from_numpy(np.append(nodes, 1.0)), torch.from_numpy(np.append(weights, 0.0))
