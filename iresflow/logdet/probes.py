"""Averages over probe vectors, which the stochastic estimators share."""

import torch
from torch import Tensor

from iresflow.logdet.distinct import FEW, distinct_signs
from iresflow.streams import Stream
from iresflow.tensors import Probe, gaussian, rademacher

__all__ = ["PROBES", "check_settings", "draw_probes", "squared_standard_error"]

PROBES: dict[str, Probe] = {"rademacher": rademacher, "gaussian": gaussian}
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

    Those of a sample are independent, but for Rademacher's in few dimensions: see
    `distinct_signs`.
    """
    if distribution == "rademacher" and point[0].numel() <= FEW:
        return distinct_signs(probes, point.detach(), generator)
    return PROBES[distribution](probes, point.detach(), generator)


def squared_standard_error(values: Tensor) -> Tensor:
    """Of the mean over K probes, ``(K, B)`` to ``(B,)``; NaN where K is 1."""
    # One probe has no spread: torch gives NaN with a warning, so it is said outright.
    probes = len(values)
    return values.var(0) / probes if probes > 1 else values[0] * torch.nan
