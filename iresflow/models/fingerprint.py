"""Fingerprints of models, by which a certificate knows whose it is."""

import hashlib
import json

import torch
from torch import Tensor, nn

from iresflow.bijections import Standardize

__all__ = ["fingerprint"]


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over all that defines a model's map, in hexadecimal.

    That is what ``state_dict`` holds and, of a model that can be stored, the arguments that it was
    built with, but for its estimator of log-determinants, which does not change the map.

    Each entry counts with its name, its kind of number, its shape and its values, in the order of
    the names. Values are widened to 64 bits, which is exact, so the fingerprint tells neither
    the device nor the type of float: it changes only with a value. A `Standardize` that changes
    nothing counts nothing: models of version 0.1.0 have none, and keep their fingerprints.
    """
    digest = hashlib.sha256()
    spec = getattr(module, "spec", None)
    if spec is not None:
        built = {name: value for name, value in spec.items() if name != "log_det"}
        digest.update(f"{type(module).__name__} {json.dumps(built, sort_keys=True)}\n".encode())
    neutral = tuple(
        f"{name}."
        for name, part in module.named_modules()
        if isinstance(part, Standardize) and part.is_identity()
    )
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(neutral):
            continue
        digest.update(f"{name}\n".encode())
        if isinstance(value, Tensor):
            kind, wide = _widest(value)
            # To the CPU first: not every device has 64 bits.
            array = value.detach().cpu().to(wide).numpy()
            digest.update(f"{kind} {tuple(array.shape)}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        else:
            digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()


def _widest(value: Tensor) -> tuple[str, torch.dtype]:
    if value.is_complex():
        return "complex", torch.complex128
    if value.is_floating_point():
        return "float", torch.float64
    return "integer", torch.int64
