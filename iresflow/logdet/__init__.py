"""Estimators of log det(I + J), as objects to pass in."""

from collections.abc import Mapping
from dataclasses import asdict

from iresflow.logdet.base import LogDetEstimate, LogDetEstimator
from iresflow.logdet.exact import Exact
from iresflow.logdet.series import PowerSeries

__all__ = [
    "ESTIMATORS",
    "Exact",
    "LogDetEstimate",
    "LogDetEstimator",
    "PowerSeries",
    "estimator_from_dict",
    "estimator_to_dict",
]

ESTIMATORS: dict[str, type[LogDetEstimator]] = {"exact": Exact, "power-series": PowerSeries}
"""The estimators by the names that configurations and checkpoints use."""


def estimator_to_dict(estimator: LogDetEstimator) -> dict[str, object]:
    """The estimator as plain values, for a checkpoint."""
    names = {cls: name for name, cls in ESTIMATORS.items()}
    return {"name": names[type(estimator)], **asdict(estimator)}  # type: ignore[call-overload]


def estimator_from_dict(settings: Mapping[str, object]) -> LogDetEstimator:
    """The estimator that `estimator_to_dict` described.

    Raises:
        ValueError: an unknown name.
    """
    rest = dict(settings)
    name = str(rest.pop("name", None))
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}; choose one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name](**rest)
