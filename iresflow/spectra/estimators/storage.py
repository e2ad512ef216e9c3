"""Fitted estimators in files of plain values and tensors (`iresflow.models.files`)."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
import torch

from iresflow.errors import CheckpointError
from iresflow.models.files import one_line, read_file, write_file
from iresflow.spectra.networks.filters import BinFilters, Filters, PhysicalFilters
from iresflow.spectra.parameters import require_kind

__all__ = ["Stored", "load_estimator"]

KEY = "estimator"
FILTERS: dict[str, type[Filters]] = {"bins": BinFilters, "daltons": PhysicalFilters}


class Stored:
    """An estimator whose parameters and fitted attributes can be written to a file.

    What is fitted are the attributes whose names end with an underscore, as scikit-learn has it.
    A class that holds more than arrays and plain values in them says how it is stored.
    """

    kinds: ClassVar[dict[str, type["Stored"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**kwargs)
        Stored.kinds[cls.__name__] = cls

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the fitted estimator, whole or not at all.

        Raises:
            ValueError: it is not fitted, a parameter can't be stored, or the path is none.
            CheckpointError: the file can't be written.
        """
        require_kind((str, os.PathLike), path=path)
        parameters = self.get_params(deep=False)  # type: ignore[attr-defined]
        content = {
            "kind": type(self).__name__,
            "parameters": {name: _encode(name, value) for name, value in parameters.items()},
            "fitted": {name: _encode(name, value) for name, value in self._fitted().items()},
        }
        write_file({KEY: content}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The estimator that `save` wrote, on the CPU.

        Raises:
            CheckpointError: the file is missing, damaged, or holds another kind of estimator.
        """
        found = load_estimator(path)
        if not isinstance(found, cls):
            raise CheckpointError(f"{path} holds a {type(found).__name__}, not a {cls.__name__}")
        return found

    def _fitted(self) -> dict[str, Any]:
        """The fitted attributes by name."""
        found = {n: v for n, v in vars(self).items() if n.endswith("_") and n[0] != "_"}
        if not found:
            raise ValueError(f"this {type(self).__name__} is not fitted yet: nothing to store")
        return found

    def _restore(self, fitted: Mapping[str, Any]) -> None:
        """Takes up what `_fitted` gave."""
        for name, value in fitted.items():
            setattr(self, name, value)


def load_estimator(path: str | os.PathLike[str]) -> Any:  # noqa: ANN401 (of any kind)
    """The fitted estimator in a file, of whatever kind, on the CPU.

    Raises:
        ValueError: the path is none.
        CheckpointError: the file is missing, damaged, or holds no estimator of this room.
    """
    require_kind((str, os.PathLike), path=path)
    whole = read_file(path)
    content = whole.get(KEY)
    if content is None and "model" in whole:
        raise CheckpointError(f"{path} holds a model, which iresflow.load reads, and no estimator")
    if not isinstance(content, dict) or content.get("kind") not in Stored.kinds:
        raise CheckpointError(f"{path} holds no estimator of iresflow.spectra")
    try:
        parameters = {n: _decode(v) for n, v in content["parameters"].items()}
        estimator = Stored.kinds[content["kind"]](**parameters)
        estimator._restore({name: _decode(v) for name, v in content["fitted"].items()})
    except Exception as error:  # constructors raise whatever values of other types lead to
        raise CheckpointError(
            f"{path}: the estimator can't be rebuilt: {one_line(error)}"
        ) from None
    return estimator


def _encode(name: str, value: Any) -> Any:  # noqa: ANN401 (any value)
    """A value as plain values and tensors.

    Raises:
        ValueError: it can't be described so.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "biuf":
            return {"array": torch.from_numpy(np.ascontiguousarray(value).copy())}
        return {"names": [_encode(name, entry) for entry in value.tolist()], "of": value.dtype.str}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Filters):
        kind = next(key for key, cls in FILTERS.items() if isinstance(value, cls))
        return {"filters": kind, "arguments": asdict(value)}  # type: ignore[call-overload]
    if isinstance(value, dict):
        pairs = [[_encode(name, k), _encode(name, v)] for k, v in value.items()]
        return {"pairs": pairs}
    if isinstance(value, list | tuple):
        return type(value)(_encode(name, entry) for entry in value)
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}, which can't be stored")


def _decode(value: Any) -> Any:  # noqa: ANN401 (any value)
    if isinstance(value, dict):
        if "array" in value:
            return value["array"].numpy()
        if "names" in value:
            return np.array([_decode(entry) for entry in value["names"]], dtype=value["of"])
        if "filters" in value:
            return FILTERS[value["filters"]](**value["arguments"])
        return {_decode(key): _decode(entry) for key, entry in value["pairs"]}
    if isinstance(value, list | tuple):
        return type(value)(_decode(entry) for entry in value)
    return value
