"""Estimators of log det(I + J), as objects to pass in."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from iresflow.logdet.base import LogDetEstimate, LogDetEstimator
from iresflow.logdet.exact import Exact
from iresflow.logdet.krylov import Krylov
from iresflow.logdet.lanczos import Lanczos
from iresflow.logdet.lengths import Geometric, LengthDistribution, Poisson
from iresflow.logdet.random_series import RandomSeries
from iresflow.logdet.reduced import ReducedPrecision
from iresflow.logdet.series import PowerSeries

__all__ = [
    "ESTIMATORS",
    "LENGTHS",
    "Exact",
    "Geometric",
    "Krylov",
    "Lanczos",
    "LengthDistribution",
    "LogDetEstimate",
    "LogDetEstimator",
    "Poisson",
    "PowerSeries",
    "RandomSeries",
    "ReducedPrecision",
    "estimator_from_dict",
    "estimator_to_dict",
]

ESTIMATORS: dict[str, type[LogDetEstimator]] = {
    "exact": Exact,
    "krylov": Krylov,
    "lanczos": Lanczos,
    "power-series": PowerSeries,
    "random-series": RandomSeries,
    "reduced-precision": ReducedPrecision,
}
"""The estimators by the names that configurations and checkpoints use."""

LENGTHS: dict[str, type[LengthDistribution]] = {"geometric": Geometric, "poisson": Poisson}
"""The distributions of random lengths by the names that configurations and checkpoints use."""


def estimator_to_dict(estimator: LogDetEstimator) -> dict[str, Any]:
    """The estimator as plain values, for a checkpoint."""
    if isinstance(estimator, ReducedPrecision):
        inner = estimator_to_dict(estimator.estimator)
        dtype = str(estimator.dtype).removeprefix("torch.")
        return {"name": _name(ESTIMATORS, estimator), "estimator": inner, "dtype": dtype}
    values = asdict(estimator)  # type: ignore[call-overload]
    if isinstance(estimator, RandomSeries):
        lengths = estimator.distribution
        values["distribution"] = {"name": _name(LENGTHS, lengths), **values["distribution"]}
    return {"name": _name(ESTIMATORS, estimator), **values}


def estimator_from_dict(settings: Mapping[str, Any]) -> LogDetEstimator:
    """The estimator that `estimator_to_dict` described.

    Raises:
        ValueError: an unknown name.
    """
    estimator, rest = _pick(ESTIMATORS, "estimator", settings)
    if estimator is RandomSeries:
        lengths, parameters = _pick(LENGTHS, "distribution of lengths", rest["distribution"])
        rest["distribution"] = lengths(**parameters)
    elif estimator is ReducedPrecision:
        inner = estimator_from_dict(rest["estimator"])
        return ReducedPrecision(inner, getattr(torch, rest["dtype"]))
    elif estimator is PowerSeries:
        # As files of version 0.1.0 named them.
        names = {"distribution": "probe", "tolerance": "tol"}
        rest = {names.get(name, name): value for name, value in rest.items()}
    return estimator(**rest)


def _name(known: Mapping[str, type], value: object) -> str:
    return next(name for name, cls in known.items() if type(value) is cls)


def _pick(
    known: Mapping[str, type[Any]], what: str, settings: Mapping[str, Any]
) -> tuple[type[Any], dict[str, Any]]:
    rest = dict(settings)
    name = str(rest.pop("name", None))
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(known)}")
    return known[name], rest
