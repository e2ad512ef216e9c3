"""Estimators of log det(I + J), as objects to pass in."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from iresflow.logdet.base import LogDetEstimate, LogDetEstimator
from iresflow.logdet.cayley import Cayley
from iresflow.logdet.differentiable import DifferentiableSeries
from iresflow.logdet.exact import Exact, ExactValue
from iresflow.logdet.krylov import Krylov
from iresflow.logdet.lanczos import Lanczos
from iresflow.logdet.lengths import Geometric, LengthDistribution, Poisson
from iresflow.logdet.random_series import RandomSeries
from iresflow.logdet.reduced import ReducedPrecision
from iresflow.logdet.series import PowerSeries
from iresflow.logdet.small import ExactWhereSmall

__all__ = [
    "ESTIMATORS",
    "LENGTHS",
    "TRAINING",
    "Cayley",
    "DifferentiableSeries",
    "Exact",
    "ExactValue",
    "ExactWhereSmall",
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
    "differentiable-series": DifferentiableSeries,
    "exact": Exact,
    "exact-value": ExactValue,
    "exact-where-small": ExactWhereSmall,
    "krylov": Krylov,
    "lanczos": Lanczos,
    "power-series": PowerSeries,
    "random-series": RandomSeries,
    "reduced-precision": ReducedPrecision,
}
"""The estimators by the names that configurations and checkpoints use."""

TRAINING = Krylov(tol=1e-3)
"""The estimator of training steps where none is given.

Training finds Jacobians with eigenvalues near -1, for which a series needs many terms, and where
its errors make it believe in a better flow (docs/numbers/fixed-terms.md)."""

LENGTHS: dict[str, type[LengthDistribution]] = {"geometric": Geometric, "poisson": Poisson}
"""The distributions of random lengths by the names that configurations and checkpoints use."""


def estimator_to_dict(estimator: LogDetEstimator) -> dict[str, Any]:
    """The estimator as plain values, for a checkpoint.

    An estimator of one's own is a dataclass of plain values, and is known by its module and class.

    Raises:
        ValueError: it is no dataclass, or holds something that is no plain value.
    """
    values = _settings(estimator)
    if isinstance(estimator, ReducedPrecision):
        values["estimator"] = estimator_to_dict(estimator.estimator)
        values["dtype"] = str(estimator.dtype).removeprefix("torch.")
    elif isinstance(estimator, ExactWhereSmall):
        values["otherwise"] = estimator_to_dict(estimator.otherwise)
    elif isinstance(estimator, RandomSeries):
        lengths = estimator.distribution
        described = {key: _plain(lengths, key, v) for key, v in _settings(lengths).items()}
        values["distribution"] = {"name": _name(LENGTHS, lengths), **described}
    plain = {key: _plain(estimator, key, value) for key, value in values.items()}
    return {"name": _name(ESTIMATORS, estimator), **plain}


def estimator_from_dict(settings: Mapping[str, Any]) -> LogDetEstimator:
    """The estimator that `estimator_to_dict` described.

    Raises:
        ValueError: an unknown name, such as that of a class whose module is not imported.
    """
    estimator, rest = _pick(ESTIMATORS, LogDetEstimator, "estimator", settings)
    if estimator is RandomSeries:
        lengths, parameters = _pick(
            LENGTHS, LengthDistribution, "distribution of lengths", rest["distribution"]
        )
        rest["distribution"] = lengths(**parameters)
    elif estimator is ReducedPrecision:
        inner = estimator_from_dict(rest["estimator"])
        return ReducedPrecision(inner, getattr(torch, rest["dtype"]))
    elif estimator is ExactWhereSmall:
        rest["otherwise"] = estimator_from_dict(rest["otherwise"])
    elif estimator is PowerSeries:
        # As files of version 0.1.0 named them.
        names = {"distribution": "probe", "tolerance": "tol"}
        rest = {names.get(name, name): value for name, value in rest.items()}
    return estimator(**rest)


def _name(known: Mapping[str, type], value: object) -> str:
    names = (name for name, cls in known.items() if type(value) is cls)
    return next(names, _place(type(value)))


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _settings(value: object) -> dict[str, Any]:
    if not is_dataclass(value):
        raise ValueError(f"{type(value).__name__} is no dataclass of its settings")
    return {field.name: getattr(value, field.name) for field in fields(value) if field.init}


def _plain(owner: object, name: str, value: Any) -> Any:  # noqa: ANN401 (any plain value)
    """A setting as a plain value: scalars of NumPy and torch as what they hold."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, dict):
        return {key: _plain(owner, f"{name}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(owner, name, entry) for entry in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"{type(owner).__name__} holds {name}, a {type(value).__name__}, which is no plain value"
    )


def _pick(
    known: Mapping[str, type[Any]], base: type, what: str, settings: Mapping[str, Any]
) -> tuple[type[Any], dict[str, Any]]:
    """The class of a name, and the settings without it.

    A class of someone else is found where its module has been imported: a file can't have it done.
    """
    rest = dict(settings)
    name = str(rest.pop("name", None))
    found = known.get(name) or {_place(cls): cls for cls in _subclasses(base)}.get(name)
    if found is None:
        raise ValueError(
            f"unknown {what} {name!r}; choose one of {', '.join(known)}, or import the module of "
            "your own first"
        )
    return found, rest


def _subclasses(base: type) -> list[type]:
    direct: list[type] = base.__subclasses__()
    return direct + [cls for child in direct for cls in _subclasses(child)]
