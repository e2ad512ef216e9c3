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

For a symmetric J the error is a square. :math:`v^\top (x_t - \tilde x_t) = x_t^\top r` with the
residual r, to which the Krylov space is orthogonal, so it is :math:`r^\top (I + tA)^{-1} r`:

.. math:: |\text{error}| \le |v|^2 h_{m+1,m}^2 \int_0^1 \frac{t\, y(t)^2}{1 - t L} dt,

which half of the steps make as small. At each t the smaller of both bounds counts.

The integrals are taken by Gauss-Legendre quadrature in :math:`s = -\log(1 - tL)`, of so many
nodes that its own error is below the rounding; :math:`(I + tH_m)^{-1}` at all nodes grows with m
by an LU factorisation.

References:
    Iterative Methods for Sparse Linear Systems (Saad, 2003), chapter 6. Functions of Matrices
    (Higham, 2008), chapter 13. Fast estimation of tr f(A) via stochastic Lanczos quadrature
    (Ubaru et al., 2017) for symmetric matrices. The error bound is derived here.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from iresflow.horizon import Horizon
from iresflow.linearization import Jacobian, Linearization
from iresflow.logdet.arnoldi import Arnoldi, Found
from iresflow.logdet.base import Kind, LogDetEstimate, LogDetEstimator
from iresflow.logdet.probes import check_settings, draw_probes
from iresflow.streams import Stream

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
        probe: Name of their distribution, ``rademacher``, ``gaussian`` or ``orthogonal``.

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
        dim = math.prod(v.shape[2:])
        most, enough = min(self.steps, dim), self.tol * dim
        with torch.no_grad():
            result = Found.fused(linearization, v, most, enough)
            if result is None:
                result = Found.empty(v)
                process = Arnoldi(v, linearization.lipschitz, linearization.symmetric)
                jacobian: Jacobian = linearization
                index = torch.arange(v.shape[1], device=v.device)
                horizon = None
                if enough:
                    horizon = Horizon.on(v.device, most, (self, dim), jacobian.lipschitz)
                for step in range(1, most + 1):
                    process.extend(jacobian)
                    last = step == most
                    if not (enough or last):
                        continue
                    ending = process.stalled | (process.error_estimate() <= enough) | last
                    if horizon is not None:
                        process.end(ending)
                        if horizon.ends(step, process.running, process.taken):
                            break
                    elif last:
                        process.end(ending)
                    elif bool((ending & process.running).any()):
                        process.end(ending)
                        stays = process.running.any(0)
                        left = len(index) - int(stays.sum())
                        if left == len(index):
                            break
                        if left >= SHRINK * len(index):
                            process.rows(~stays).write(result, index[~stays])
                            jacobian = jacobian.rows(stays.nonzero()[:, 0])
                            index, process = index[stays], process.rows(stays)
                process.write(result, index)
        surrogate = None
        if torch.is_grad_enabled():  # two products, and nothing would read them
            surrogate = linearization.bilinear(result.left, v).mean(0)
        return LogDetEstimate.of_probes(
            result.value,
            surrogate=surrogate,
            truncation=result.truncation.mean(0),
            gradient_truncation=result.gradient_truncation.amax(0),
            products=result.products.mean(0),
        )
