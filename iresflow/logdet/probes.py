"""Averages over probe vectors, which the stochastic estimators share."""

import torch
from torch import Tensor

from iresflow.tensors import Probe, dot, gaussian, rademacher

__all__ = ["PROBES", "check_probes", "draw_probes", "norms", "spread", "squared_standard_error"]

PROBES: dict[str, Probe] = {"rademacher": rademacher, "gaussian": gaussian}
"""Distributions of the probes, by name."""


def check_probes(probes: int, distribution: str) -> None:
    """Raises a ValueError for settings that can't be drawn from."""
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if distribution not in PROBES:
        raise ValueError(
            f"unknown distribution {distribution!r}; choose one of {', '.join(PROBES)}"
        )


def draw_probes(
    distribution: str, probes: int, point: Tensor, generator: torch.Generator | None
) -> Tensor:
    """``(K, B, *event)`` probes for points ``(B, *event)``."""
    return PROBES[distribution](probes, point.detach(), generator)


def norms(x: Tensor) -> Tensor:
    """Euclidean norms of a stack of directions: ``(K, B, *event)`` to ``(K, B)``."""
    return dot(x, x).sqrt()


def spread(scalars: Tensor, like: Tensor) -> Tensor:
    """One scalar for each direction ``(K, B)``, shaped to multiply ``(K, B, *event)``."""
    return scalars.to(like.dtype).reshape(*scalars.shape, *[1] * (like.ndim - 2))


def squared_standard_error(values: Tensor) -> Tensor:
    """Of the mean over K probes, ``(K, B)`` to ``(B,)``; NaN where K is 1."""
    # One probe has no spread: torch gives NaN with a warning, so it is said outright.
    probes = len(values)
    return values.var(0) / probes if probes > 1 else values[0] * torch.nan
