r"""Log-determinants from Krylov subspaces: the Lanczos form, with rigorous brackets.

:math:`\log\det(I + J) = \tfrac12 \log\det S` with :math:`S = (I + J)^\top (I + J)`, symmetric with
its spectrum in :math:`[(1-L)^2, (1+L)^2]`. For a probe v, :math:`v^\top \log(S) v` is an integral
over that interval, and m Lanczos steps give its m-point Gauss rule,
:math:`|v|^2 e_1^\top \log(T_m) e_1` with the tridiagonal :math:`T_m`. The even derivatives of the
logarithm are negative and the odd ones positive, so the Gauss rule lies *above* the integral, and
the Gauss-Radau rule with one node at the lower end :math:`(1-L)^2` lies *below* it (Golub and
Meurant, 2010, theorems 6.3 and 6.4): a bracket of each probe's value.

Each step takes two products, one with J and one with its transpose. Of a symmetric J,
:math:`\log\det(I + J)` itself is such an integral over :math:`[1-L, 1+L]`: a step then takes one
product, and fewer steps are needed, since the condition number of I + J is the root of that of S.

References:
    Matrices, Moments and Quadrature with Applications (Golub and Meurant, 2010). Fast estimation
    of tr f(A) via stochastic Lanczos quadrature (Ubaru et al., 2017).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.linearization import Jacobian, Linearization
from iresflow.logdet.base import EXPANSION, Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes
from iresflow.streams import Stream
from iresflow.tensors import dot, spread

__all__ = ["Lanczos"]

ROUNDING = 16.0
"""Widening of the bracket in units of eps |v|^2 and of the condition number of S: a model of the
rounding of products and orthogonalisation, not a proof."""


@final
@dataclass(frozen=True)
class Lanczos(LogDetEstimator):
    r""":math:`\tfrac12 v^\top \log((I + J)^\top (I + J)) v` between Gauss and Gauss-Radau rules.

    The value is the middle of the bracket, the truncation bound half of its width. Without a
    certified Lipschitz bound there is no Radau node: the value is then the Gauss rule, and the
    probes stop when it no longer moves. The batch stops together.

    The surrogate is :math:`w^\top J v` with :math:`w = (I + J) V_m T_m^{-1} e_1 |v|`, which
    approximates :math:`(I + J)^{-\top} v`; the products with J are those of the Lanczos steps. The
    error of the value is like the square of the surrogate's: look at `gradient_truncation`.

    Arguments:
        steps: Lanczos steps at most, of two products each; of one where J is symmetric.
        tol: Truncation error of each block in nats per dimension at which a batch stops; 0 takes
            all steps.
        probes: Number of probes K for each sample.
        probe: Name of their distribution, ``rademacher``, ``gaussian`` or ``orthogonal``.

    Raises:
        ValueError: steps or probes below 1, a negative tolerance, or an unknown distribution.
    """

    steps: int = 32
    tol: float = 1e-6
    probes: int = 1
    probe: str = "rademacher"
    kind: ClassVar[Kind] = "biased"

    def __post_init__(self) -> None:
        check_settings(self.probes, self.probe, self.tol, steps=self.steps)

    def estimate(self, linearization: Linearization, generator: Stream | None) -> LogDetEstimate:
        v = draw_probes(self.probe, self.probes, linearization.point, generator)
        with torch.no_grad():
            kind = _Symmetric if linearization.symmetric else _Gram
            process = kind(v, linearization.lipschitz)
            enough = self.tol * math.prod(v.shape[2:])
            previous = torch.full_like(process.square, torch.inf)
            while True:
                process.extend(linearization)
                upper, lower, slack = process.bracket()
                gap = (upper - lower) / 2 if process.lipschitz is not None else previous - upper
                previous = upper
                if len(process.diagonal) == min(self.steps, math.prod(v.shape[2:])):
                    break
                if self.tol and bool((gap.abs() <= enough).all()):
                    break
            certified = process.lipschitz is not None
            value = ((upper + lower) / 2).masked_fill(process.expands, torch.nan)
            left, residual = process.left()
        dtype = v.dtype
        half = (upper - lower) / 2 + slack if certified else torch.full_like(upper, torch.inf)
        surrogate = None
        if torch.is_grad_enabled():  # two products, and nothing would read them
            surrogate = linearization.bilinear(left, v).mean(0)
        return LogDetEstimate.of_probes(
            value.to(dtype),
            surrogate=surrogate,
            truncation=half.to(dtype).mean(0),
            gradient_truncation=residual.to(dtype).amax(0),
            products=torch.full_like(v[0].flatten(1)[:, 0], process.products),
        )


class _Lanczos(ABC):
    """Lanczos steps on a symmetric matrix S for K probes for each of B samples.

    Arguments:
        v: The probes, ``(K, B, *event)``.
        lipschitz: A certified bound of the norm of J, or None.
    """

    power: ClassVar[int]
    """Of the determinant of I + J that is the determinant of S: the products of a step, too."""

    def __init__(self, v: Tensor, lipschitz: float | None) -> None:
        size = dot(v, v).sqrt()
        self.lipschitz = lipschitz
        self.square = size.double() ** 2
        self.eps = torch.finfo(v.dtype).eps
        self.basis = [v / spread(size, v)]
        self.images: list[Tensor] = []  # what `left` adds up: (I + J)^-T times each S v_j
        self.diagonal: list[Tensor] = []  # (K, B) each
        self.subdiagonal: list[Tensor] = []
        self.expands = torch.zeros_like(self.square, dtype=torch.bool)
        self.stalled = torch.zeros_like(self.square, dtype=torch.bool)

    def extend(self, jacobian: Jacobian) -> None:
        """One step: a product with S, and the next row of the tridiagonal matrix."""
        moved, new = self.multiply(jacobian, self.basis[-1])
        self.expands |= dot(moved, moved) > EXPANSION**2
        size = dot(new, new).sqrt()
        diagonal = torch.zeros_like(self.square)
        for _ in range(2):
            # Against the whole basis: a three-term recurrence loses orthogonality in float32.
            for i, old in enumerate(self.basis):
                part = dot(old, new)
                if i == len(self.basis) - 1:
                    diagonal += part
                new = new.addcmul(spread(part, new), old, value=-1)
        below = dot(new, new).sqrt()
        # After an invariant space the basis is zero, and its part of the matrix the identity.
        self.diagonal.append(diagonal.masked_fill(self.stalled, 1))
        self.stalled |= below <= 8 * self.eps * size
        self.subdiagonal.append(below.double().masked_fill(self.stalled, 0))
        unit = new / spread(below.clamp_min(torch.finfo(new.dtype).tiny), new)
        self.basis.append(unit * spread(~self.stalled, unit))

    @property
    def products(self) -> int:
        """Those with J or its transpose that were taken."""
        return self.power * len(self.diagonal)

    @abstractmethod
    def multiply(self, jacobian: Jacobian, vector: Tensor) -> tuple[Tensor, Tensor]:
        """J v and S v of unit vectors; keeps the image of v that `left` adds up."""

    def bracket(self) -> tuple[Tensor, Tensor, Tensor]:
        """Upper and lower end and their rounding, ``(K, B)``.

        Without a certified bound both ends are the Gauss rule.
        """
        gauss = self._rule(self._tridiagonal())
        if self.lipschitz is None:
            return gauss, gauss, torch.zeros_like(gauss)
        low, high = (1 - self.lipschitz) ** self.power, (1 + self.lipschitz) ** self.power
        # Where the space is invariant the Gauss rule is exact, and there is no Radau rule.
        radau = torch.where(self.subdiagonal[-1] > 0, self._rule(self._radau(low)), gauss)
        slack = ROUNDING * self.eps * high / low * self.square
        return gauss, radau, slack

    def _tridiagonal(self) -> Tensor:
        diagonal = torch.stack(self.diagonal, -1)
        matrix = torch.diag_embed(diagonal)
        if len(self.diagonal) > 1:
            below = torch.stack(self.subdiagonal[:-1], -1)
            matrix = matrix + torch.diag_embed(below, 1) + torch.diag_embed(below, -1)
        return matrix

    def _radau(self, node: float) -> Tensor:
        """The next tridiagonal matrix with its last entry such that `node` is an eigenvalue.

        Golub and Meurant (2010), section 6.2.1: (T - node I) d = below^2 e_m, entry node + d_m.
        """
        matrix = self._tridiagonal()
        m = matrix.shape[-1]
        below = self.subdiagonal[-1]
        right = torch.zeros_like(matrix[..., :1])
        right[..., -1, 0] = below**2
        shifted = matrix - node * torch.eye(m, dtype=matrix.dtype, device=matrix.device)
        last = node + torch.linalg.solve(shifted, right)[..., -1, 0]
        bigger = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
        bigger[..., m, m - 1] = bigger[..., m - 1, m] = below
        bigger[..., m, m] = last
        return bigger

    def _rule(self, matrix: Tensor) -> Tensor:
        nodes, vectors = torch.linalg.eigh(matrix)
        smallest = torch.finfo(nodes.dtype).tiny
        weights = vectors[..., 0, :] ** 2
        return self.square * (weights * nodes.clamp_min(smallest).log()).sum(-1) / self.power

    def left(self) -> tuple[Tensor, Tensor]:
        """w, ``(K, B, *event)``, and the bound of its error relative to v, ``(K, B)``."""
        matrix = self._tridiagonal()
        start = torch.zeros_like(matrix[..., :1])
        start[..., 0, 0] = self.square.sqrt()
        solution = torch.linalg.solve(matrix, start)[..., 0]
        left = torch.zeros_like(self.basis[0])
        for j, image in enumerate(self.images):
            left += spread(solution[..., j], image) * image
        residual = self.subdiagonal[-1] * solution[..., -1].abs() / self.square.sqrt()
        if self.lipschitz is None:
            return left, torch.full_like(residual, torch.inf)
        return left, residual / (1 - self.lipschitz)


@final
class _Gram(_Lanczos):
    """On :math:`(I + J)^\\top (I + J)`."""

    power = 2

    def multiply(self, jacobian: Jacobian, vector: Tensor) -> tuple[Tensor, Tensor]:
        moved = jacobian.jvp(vector)
        image = vector + moved
        self.images.append(image)
        return moved, image + jacobian.vjp(image)


@final
class _Symmetric(_Lanczos):
    """On I + J itself, which is symmetric."""

    power = 1

    def multiply(self, jacobian: Jacobian, vector: Tensor) -> tuple[Tensor, Tensor]:
        moved = jacobian.vjp(vector)
        self.images.append(vector)
        return moved, vector + moved
