"""Bias and spread of log-determinant estimators on a trained flow (thesis, figure 5.3)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from iresflow.linearization import Linearization
from iresflow.logdet import (
    Krylov,
    LogDetEstimate,
    LogDetEstimator,
    Poisson,
    PowerSeries,
    RandomSeries,
)
from iresflow.models import Flow

__all__ = ["FAMILIES", "EstimatorCurve", "EstimatorFamily", "estimator_curves"]

REFERENCE_TERMS = 300
"""Terms of the series that stands for the value without truncation."""


@final
@dataclass(frozen=True)
class EstimatorFamily:
    """Estimators of one kind, by what they cost.

    Attributes:
        label: For a figure's legend.
        build: From an effort n (terms, products) and a number of probes to an estimator. It draws
            its probes first, so that all estimators of one seed share them.
    """

    label: str
    build: Callable[[int, int], LogDetEstimator]


FAMILIES: tuple[EstimatorFamily, ...] = (
    EstimatorFamily("power series", lambda n, probes: PowerSeries(n, probes)),
    EstimatorFamily("Krylov", lambda n, probes: Krylov(n, tol=0, probes=probes)),
    # Two exact terms and as many more on average; its "bias" is the noise of its lengths.
    EstimatorFamily(
        "random series", lambda n, probes: RandomSeries(Poisson(max(n - 2, 0.5)), 2, probes)
    ),
)
"""The kinds that ``iresflow certify --plots`` compares. Lanczos is none of them: it averages other
forms to the same log-determinant, so that with shared probes it has another reference."""


@final
@dataclass(frozen=True)
class EstimatorCurve:
    """Errors of one family on a batch, for N efforts, in bits/dim.

    Attributes:
        label: Of the family.
        products: Products with the Jacobian for each probe and block, on average, ``(N,)``.
        bias: Absolute mean over samples and probes of the difference to a long series with the
            same probes, ``(N,)``.
        deviation: Standard deviation of a one-probe estimate of one sample, ``(N,)``.
    """

    label: str
    products: np.ndarray
    bias: np.ndarray
    deviation: np.ndarray


@torch.no_grad()
def estimator_curves(
    flow: Flow,
    x: Tensor,
    context: Tensor | None = None,
    *,
    efforts: Sequence[int],
    families: Sequence[EstimatorFamily] = FAMILIES,
    probes: int = 8,
    seed: int = 0,
) -> tuple[EstimatorCurve, ...]:
    """Runs every estimator at the same points and with the same probes.

    One pass through the flow serves all of them, since they share each block's linearization. The
    reference is a series of `REFERENCE_TERMS` terms, or to 1e-9 nats per dimension.

    Arguments:
        flow: In eval mode.
        x: ``(B, *shape)``.
        context: ``(B, context_dim)`` or None.
        efforts: What the families are built with.
        families: What to compare.
        probes: Of each estimate, at least 2.
        seed: Of the probes.

    Raises:
        ValueError: fewer than 2 probes, which have no spread.
        NotContractiveError: a block's certified bound is not below 1.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    reference = PowerSeries(REFERENCE_TERMS, probes, tol=1e-9)
    built = [[family.build(n, probes) for n in efforts] for family in families]
    shape = (len(families), len(efforts), len(x))
    bias, variance, products = (np.zeros(shape) for _ in range(3))
    blocks = 0

    def compare(linearization: Linearization) -> LogDetEstimate:
        nonlocal blocks
        stream = seed * 1_000_003 + blocks
        blocks += 1
        exact = _run(reference, linearization, stream)
        target = _numbers(exact.value)
        for i, row in enumerate(built):
            for j, estimator in enumerate(row):
                estimate = _run(estimator, linearization, stream)
                bias[i, j] += _numbers(estimate.value) - target
                # That of one probe among these, also where an estimate claims none.
                assert estimate.terms is not None
                variance[i, j] += _numbers(estimate.terms.var(0))
                products[i, j] += _numbers(estimate.products)
        return exact

    flow.bijection(flow.data_map.transform(x), context, compare)
    bits = flow.base_dim * math.log(2)
    return tuple(
        EstimatorCurve(
            family.label,
            products=products[i].mean(1) / max(1, blocks),
            bias=np.abs(bias[i].mean(1)) / bits,
            deviation=np.sqrt(variance[i].mean(1)) / bits,
        )
        for i, family in enumerate(families)
    )


def _run(estimator: LogDetEstimator, linearization: Linearization, stream: int) -> LogDetEstimate:
    generator = torch.Generator(linearization.point.device).manual_seed(stream)
    return estimator(linearization, generator)


def _numbers(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()
