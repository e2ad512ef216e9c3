"""Models and other state on disk: plain values and tensors, written so that nothing is lost.

A file is a `torch.save` of a dictionary that loads with ``weights_only=True``: no class of this
package is pickled. It is written beside its final name and renamed, so a full disk or a killed
process leaves the previous file as it was.
"""

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self
from warnings import warn
from zipfile import BadZipFile

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from iresflow.ambient import WideFloats, own_arithmetic
from iresflow.errors import CertificateWarning, CheckpointError
from iresflow.logdet import estimator_from_dict
from iresflow.models.certificate import Certificate, find_defects

__all__ = [
    "FORMAT",
    "VERSION",
    "StoredModel",
    "model_from_payload",
    "read_file",
    "stored_certificate",
    "warn_of_other_weights",
    "write_file",
]

FORMAT = "iresflow"
VERSION = 1


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
        return cls(**{**spec, "log_det": estimator_from_dict(spec["log_det"])})

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
    """Leaves new weights as their memory is: nothing is drawn from a random stream for them."""

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
            return args[0] if args else named["tensor"]
        return func(*args, **named)


@own_arithmetic()
def model_from_payload(payload: Mapping[str, Any], device: str | torch.device) -> StoredModel:
    """The model that `StoredModel.payload` described, in eval mode, on a device.

    Raises:
        CheckpointError: an unknown kind of model, or weights that don't fit the description.
    """
    try:
        with _Uninitialized():
            model = _class_of(payload["kind"]).from_spec(payload["spec"])
        state = payload["state"]
        dtypes = {t.dtype for t in state.values() if t.is_floating_point()}
        # Narrow weights, of older files, are widened: no model computes in their type.
        wide = {torch.promote_types(dtype, torch.float32) for dtype in dtypes}
        model.to(dtype=wide.pop() if len(wide) == 1 else None)
        model.eval().load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"the model in the checkpoint can't be rebuilt: {reason}") from None
    return model.to(device)


def _class_of(kind: str) -> type[StoredModel]:
    if kind in StoredModel.kinds:
        return StoredModel.kinds[kind]
    # Files of version 0.1.0 name classes from elsewhere without their modules.
    found = [cls for cls in StoredModel.kinds.values() if cls.__name__ == kind]
    if len(found) != 1:
        raise ValueError(f"no kind of model {kind!r} is known; import the module that has it")
    return found[0]


def stored_certificate(content: Mapping[str, Any]) -> Certificate | None:
    """The certificate in a file's content; None where it holds none, as older files do.

    Raises:
        CheckpointError: what lies in its place is none.
    """
    values = content.get("certificate")
    if not isinstance(values, Mapping):
        return None
    try:
        return Certificate.from_dict(values)
    except ValueError as error:
        raise CheckpointError(
            f"the certificate in the checkpoint can't be read: {error}"
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
            "with them does not hold. flow.certify() makes a new one, flow.save(path) stores it",
            CertificateWarning,
            stacklevel=3,
        )


def write_file(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a dictionary of plain values and tensors, whole or not at all.

    Raises:
        CheckpointError: it can't be written; an older file of that name is intact.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            # A temporary file is its owner's alone; a checkpoint is a file like any other.
            os.chmod(temporary, 0o666 & ~_umask())
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        kept = "; the previous file is intact" if path.exists() else ""
        raise CheckpointError(f"could not write {path}: {error}{kept}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_file(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a file of `write_file`.

    Raises:
        CheckpointError: the file is missing, truncated, not of this package, or of a version that
            this one does not read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, BadZipFile, ValueError):
        raise CheckpointError(
            f"{path} is not a checkpoint, or was cut off ({path.stat().st_size} bytes)"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of iresflow")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('version')}; this iresflow reads {VERSION}"
        )
    return content
