"""Averages over probe vectors, which the stochastic estimators share."""

import math

import torch
from torch import Tensor

from iresflow.logdet.distinct import FEW, distinct_signs
from iresflow.streams import Stream
from iresflow.tensors import Probe, gaussian, rademacher

__all__ = ["PROBES", "check_settings", "draw_probes", "squared_standard_error"]


def orthogonal(count: int, like: Tensor, generator: Stream | None = None) -> Tensor:
    r"""Probes of a sample that are orthogonal to each other, of norm :math:`\sqrt D`.

    They are ``(count, *like.shape)``: normal vectors, made orthogonal. Each is uniform on its
    sphere, so :math:`v^\top A v` has the trace as its mean. All D of a basis have the exact trace
    as their mean, so any two have the covariance :math:`-\sigma^2 / (D - 1)`, and the mean of K
    has the variance of independent ones times :math:`1 - (K - 1) / (D - 1)`: their spread
    overestimates its error. After D probes they begin anew.
    """
    batch, dim = like.shape[0], math.prod(like.shape[1:])
    parts = []
    for first in range(0, count, dim):
        normal = gaussian(min(dim, count - first), like, generator).flatten(2)
        basis, _ = torch.linalg.qr(normal.permute(1, 2, 0))  # (B, D, K)
        parts.append(basis.permute(2, 0, 1) * dim**0.5)
    return torch.cat(parts).reshape(count, batch, *like.shape[1:]).contiguous()


PROBES: dict[str, Probe] = {
    "rademacher": rademacher,
    "gaussian": gaussian,
    "orthogonal": orthogonal,
}
"""Distributions of the probes, by name."""


def check_settings(probes: int, probe: str, tol: float = 0.0, **counts: int) -> None:
    """Raises a ValueError for settings of an estimator that are out of range.

    Arguments:
        probes: Number of probes, at least 1.
        probe: Name of their distribution.
        tol: A tolerance, 0 or more.
        counts: Other numbers that must be at least 1, by their names.
    """
    for name, count in {"probes": probes, **counts}.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if not tol >= 0:
        raise ValueError(f"tol must be 0 or positive, got {tol}")
    if probe not in PROBES:
        raise ValueError(f"unknown distribution {probe!r}; choose one of {', '.join(PROBES)}")


def draw_probes(distribution: str, probes: int, point: Tensor, generator: Stream | None) -> Tensor:
    """``(K, B, *event)`` probes for points ``(B, *event)``.

    Those of a sample are independent, but for orthogonal ones, and Rademacher's in few dimensions:
    see `distinct_signs`. The means of both have less variance than their spread tells.
    """
    if distribution == "rademacher" and math.prod(point.shape[1:]) <= FEW:
        return distinct_signs(probes, point.detach(), generator)
    return PROBES[distribution](probes, point.detach(), generator)


def squared_standard_error(values: Tensor) -> Tensor:
    """Of the mean over K probes, ``(K, B)`` to ``(B,)``; NaN where K is 1."""
    # One probe has no spread: torch gives NaN with a warning, so it is said outright.
    probes = len(values)
    return values.var(0) / probes if probes > 1 else values[0] * torch.nan
