"""Models in files: described by plain values and tensors, and built again from them."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Self
from warnings import warn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from iresflow.ambient import WideFloats, own_arithmetic
from iresflow.errors import CertificateWarning, CheckpointError
from iresflow.logdet import estimator_from_dict
from iresflow.models.certificates.certificate import Certificate, find_defects
from iresflow.models.files import WITHOUT_DIGEST, one_line, read_file, write_file

__all__ = [
    "StoredModel",
    "model_from_payload",
    "read_file",
    "read_model",
    "stored_certificate",
    "warn_of_other_weights",
    "write_file",
]

FORMAT = "iresflow"
VERSION = 1
ROOMS = {"LearnedOperator": "iresflow.inverse_problems"}
"""Kinds of models that rooms above this one have, which a file that names one imports."""

READERS = {"estimator": "iresflow.spectra.load_estimator"}
"""What else than models lies in files of this format, and what reads it."""

DRAWS_PER_TENSOR = 20  # constructors draw a weight once, or a few times over


class StoredModel(WideFloats, nn.Module):
    """A model that can be rebuilt from ``spec``, its constructor's arguments as plain values."""

    kinds: ClassVar[dict[str, type["StoredModel"]]] = {}
    spec: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**kwargs)
        StoredModel.kinds[cls.kind()] = cls

    @classmethod
    def kind(cls) -> str:
        """The name of the class in files; that of a class from elsewhere has its module in it."""
        if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            return cls.__name__
        return f"{cls.__module__}.{cls.__qualname__}"

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The model, newly initialised, that ``spec`` describes."""
        values = dict(spec)
        if "log_det" in values:
            values["log_det"] = estimator_from_dict(values["log_det"])
        return cls(**values)

    def payload(self) -> dict[str, Any]:
        """The model as it is, as plain values and tensors.

        Raises:
            CheckpointError: it was put together by hand, so nothing says how to build it again, or
                its estimator can't be described.
        """
        if self.spec is None:
            raise CheckpointError(
                f"a {type(self).__name__} put together by hand can't be stored whole: store its "
                "state_dict(), and build it again before loading that"
            )
        if self.spec.get("log_det", {}) is None:
            raise CheckpointError(
                "a model whose estimator of log-determinants is no dataclass of plain values "
                "can't be stored"
            )
        return {"kind": self.kind(), "spec": self.spec, "state": self.state_dict()}


class _Uninitialized(TorchFunctionMode):
    """Leaves new weights as their memory is: nothing is drawn from a random stream for them.

    A description of far more weights than are stored is refused while it is followed: it may
    name more blocks than any machine can build.
    """

    def __init__(self, stored: int) -> None:
        super().__init__()
        self._draws_left = DRAWS_PER_TENSOR * (stored + 1)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        named = kwargs or {}
        initial = getattr(func, "__module__", None) == nn.init.__name__
        if initial or func in (Tensor.uniform_, Tensor.normal_):
            self._draws_left -= 1
            if self._draws_left < 0:
                raise ValueError("it is described as far larger than the weights stored with it")
            return args[0] if args else named["tensor"]
        return func(*args, **named)


@own_arithmetic()
def model_from_payload(payload: Mapping[str, Any], device: str | torch.device) -> StoredModel:
    """The model that `StoredModel.payload` described, in eval mode, on a device.

    The global random streams are left as they are.

    Raises:
        CheckpointError: an unknown kind of model, or weights that don't fit the description, or
            hold NaN.
    """
    try:
        state = payload["state"]
        with _Uninitialized(len(state)):
            model = _class_of(payload["kind"]).from_spec(payload["spec"])
        # Not by `state_dict`, which would compute the norms of weights that nobody has set.
        _require_like(dict([*model.named_parameters(), *model.named_buffers()]), state)
        dtypes = {t.dtype for t in state.values() if t.is_floating_point()}
        # Narrow weights, of older files, are widened: no model computes in their type.
        wide = {torch.promote_types(dtype, torch.float32) for dtype in dtypes}
        model.to(dtype=wide.pop() if len(wide) == 1 else None)
        model.eval().load_state_dict(state)
    except Exception as error:  # constructors raise whatever values of other types lead to
        raise CheckpointError(
            f"the model in the checkpoint can't be rebuilt: {one_line(error)}"
        ) from None
    return model.to(device)


def _class_of(kind: str) -> type[StoredModel]:
    if kind in ROOMS:
        import_module(ROOMS[kind])
    if kind in StoredModel.kinds:
        return StoredModel.kinds[kind]
    # Files of version 0.1.0 name classes from elsewhere without their modules.
    found = [cls for cls in StoredModel.kinds.values() if cls.__name__ == kind]
    if len(found) != 1:
        raise ValueError(f"no kind of model {kind!r} is known; import the module that has it")
    return found[0]


def _require_like(own: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raises a ValueError where stored weights are of another kind than the model's, or NaN."""
    for name, value in stored.items():
        expected = own.get(name)
        if not isinstance(value, Tensor) or not isinstance(expected, Tensor):
            continue  # load_state_dict says what is missing, unexpected or no tensor
        kinds = [(t.is_floating_point(), t.is_complex()) for t in (value, expected)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{name} has type {value.dtype}, not {expected.dtype}")
        if bool(value.isnan().any()):
            raise ValueError(f"{name} holds NaN")


def read_model(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[StoredModel, dict[str, Any]]:
    """The model in a file, in eval mode, on a device; and all that the file holds.

    Raises:
        CheckpointError: as `read_file` and `model_from_payload`, or it holds no model.

    Warns:
        CertificateWarning: a certificate belongs to such a model, and there is none.
    """
    content = read_file(path)
    for kind, reader in READERS.items():
        if kind in content:
            raise CheckpointError(f"{path} holds an {kind}, which {reader} reads, and no model")
    if "model" not in content:
        raise CheckpointError(f"{path} holds no model: its run has not validated yet")
    try:
        model = model_from_payload(content["model"], device)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    older = content["version"] == WITHOUT_DIGEST  # and may be older than certificates
    if "certificate" not in content and hasattr(model, "certify") and not older:
        warn(
            f"{path} holds no certificate of its weights: the model's certify() makes one, "
            "save(path) stores it",
            CertificateWarning,
            stacklevel=3,
        )
    return model, content


def stored_certificate(content: Mapping[str, Any]) -> Certificate | None:
    """The certificate in a file's content; None where it holds none, as older files do.

    Raises:
        CheckpointError: what lies in its place is none.
    """
    values = content.get("certificate")
    older = content.get("version") == WITHOUT_DIGEST
    if values is None or (older and not isinstance(values, Mapping)):
        return None
    try:
        return Certificate.from_dict(values)
    except Exception as error:  # wrong types in it raise whatever they lead to
        raise CheckpointError(
            f"the certificate in the checkpoint can't be read: {one_line(error)}"
        ) from None


def warn_of_other_weights(
    model: nn.Module, certificate: Certificate | None, path: str | os.PathLike[str]
) -> None:
    """Warns where a model that came with a certificate has other weights than were certified.

    Warns:
        CertificateWarning: so it is, or something in the model is not finite or not invertible.
    """
    if defects := find_defects(model):
        warn(
            f"the model in {path} is no bijection: {'; '.join(defects)}",
            CertificateWarning,
            stacklevel=3,
        )
    if certificate is not None and not certificate.belongs_to(model):
        warn(
            f"the weights in {path} are not those that were certified: the certificate stored "
            "with them does not hold. The model's certify() makes a new one, save(path) stores it",
            CertificateWarning,
            stacklevel=3,
        )
