"""Files of plain values and tensors: written whole or not at all, and read only if undamaged.

A file is a `torch.save` of a dictionary that loads with ``weights_only=True``: no class of this
package is pickled. It is written beside its final name, read back, and renamed, so a full disk, a
killed process or a value that can't be loaded leaves the previous file as it was.

The dictionary holds a SHA-256 digest of all its values. Format 1, of version 0.1.0, had none: of
its files the checksums of the zip archive are checked, as of all others, but what was left out on
purpose is not missed.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from iresflow.errors import CheckpointError

__all__ = ["FORMAT", "VERSION", "digest_of", "one_line", "read_file", "write_file"]

FORMAT = "iresflow"
VERSION = 2
WITHOUT_DIGEST = 1
"""The version whose files hold no digest."""

OWN_KEYS = ("format", "version", "digest")

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
SEQUENCES = (list, tuple, torch.Size)
MAPPINGS = (dict, OrderedDict)


def one_line(error: BaseException) -> str:
    """What an error says, in one line of a length that a person reads."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} ..."


def digest_of(value: object) -> str:
    """SHA-256 of plain values and tensors, in hexadecimal: of their types, shapes, bits and order.

    Raises:
        TypeError: something in it is neither plain nor a tensor; the message has its place.
    """
    digest = hashlib.sha256()
    _feed(digest, value, "")
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: object, place: str) -> None:
    kind = type(value)
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise TypeError(f"{place or 'the whole'} is a tensor that is not dense")
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    elif kind in MAPPINGS:
        assert isinstance(value, dict)
        digest.update(f"mapping {len(value)}\n".encode())
        for key, entry in value.items():
            _feed(digest, key, f"a key of {place}")
            _feed(digest, entry, f"{place}.{key}" if place else str(key))
    elif kind in SEQUENCES:
        assert isinstance(value, list | tuple)
        digest.update(f"{'list' if kind is list else 'tuple'} {len(value)}\n".encode())
        for index, entry in enumerate(value):
            _feed(digest, entry, f"{place}[{index}]")
    elif kind in PLAIN:
        digest.update(f"{kind.__name__} {value!r}\n".encode(errors="backslashreplace"))
    else:
        raise TypeError(
            f"{place or 'the whole'} is a {kind.__module__}.{kind.__qualname__}, and only plain "
            "values and tensors are stored"
        )


def write_file(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a dictionary of plain values and tensors, whole or not at all.

    Raises:
        CheckpointError: it can't be written, or not be read back; an older file of that name is
            intact.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        values = {key: value for key, value in content.items() if key not in OWN_KEYS}
        whole = {"format": FORMAT, "version": VERSION, "digest": digest_of(values), **values}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            # A temporary file is its owner's alone; a checkpoint is a file like any other.
            os.chmod(temporary, 0o666 & ~_umask())
            _save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        with temporary.open("rb") as file:
            _content(file)
        temporary.replace(path)
        _settle(path.parent)
    except (OSError, RuntimeError, TypeError, _DamageError) as error:
        kept = "; the previous file is intact" if os.path.isfile(path) else ""
        raise CheckpointError(f"could not write {path}: {one_line(error)}{kept}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


class _Writer:
    """Passes bytes on to a file, and remembers why it could not: torch.save does not say so."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _save(whole: Mapping[str, Any], file: IO[bytes]) -> None:
    writer = _Writer(file)
    try:
        torch.save(whole, cast(IO[bytes], writer))
    except RuntimeError as error:
        raise writer.error or error from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _settle(directory: Path) -> None:
    """Makes a new name in a directory outlast a failure of power, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of `write_file`, onto the CPU. ``version`` says which format it has.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, not of this package, or of a
            version that this one does not read.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise CheckpointError(f"{path} is not a file")
        with path.open("rb") as file:
            return _content(file)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read {path}: {one_line(error)}") from None
    except _DamageError as error:
        raise CheckpointError(f"{path} {error}") from None


class _DamageError(Exception):
    """What is wrong with a file; its name comes before the message."""


def _content(file: IO[bytes]) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    try:
        # First: a size that is wrong in the pickle makes torch.load read memory of others.
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception:  # a damaged archive raises whatever its numbers lead to
        raise _DamageError(f"is not a checkpoint, or was cut off ({size} bytes)") from None
    if damaged is not None:
        raise _DamageError("is damaged: a checksum in it is wrong")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other kinds of files
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # as above, of pickles
        raise _DamageError(f"is not a checkpoint, or was cut off ({size} bytes)") from None
    return _checked(content)


def _checked(content: object) -> dict[str, Any]:
    if type(content) is not dict or type(content.get("format")) is not str:
        raise _DamageError("is not a checkpoint of iresflow")
    version = content.get("version")
    if content["format"] != FORMAT or type(version) is not int:
        raise _DamageError("is not a checkpoint of iresflow")
    if version not in (WITHOUT_DIGEST, VERSION):
        raise _DamageError(
            f"has format version {version}; this iresflow reads {WITHOUT_DIGEST} to {VERSION}"
        )
    if version == WITHOUT_DIGEST:
        return content
    values = {key: value for key, value in content.items() if key not in OWN_KEYS}
    try:
        sound = content.get("digest") == digest_of(values)
    except TypeError as error:
        raise _DamageError(f"is damaged: {error}") from None
    if not sound:
        raise _DamageError("is damaged: what it holds is not what its digest was made of")
    return {"version": version, **values}
