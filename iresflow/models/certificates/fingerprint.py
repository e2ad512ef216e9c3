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
    state = {
        name: value
        for name, value in sorted(module.state_dict().items())
        if not name.startswith(neutral)
    }
    held = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    on_host = dict(zip(held, _copied(list(held.values())), strict=True))
    for name, value in state.items():
        digest.update(f"{name}\n".encode())
        if name in on_host:
            kind, wide = _widest(on_host[name])
            # Widened here: not every device has 64 bits.
            array = on_host[name].to(wide).numpy()
            digest.update(f"{kind} {tuple(array.shape)}\n".encode())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        else:
            digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()


def _copied(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, those of a device and a type in one copy: each is waited for."""
    copies = [tensor.detach() for tensor in tensors]
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(copies):
        if tensor.device.type != "cpu":
            groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    for group in groups.values():
        flat = torch.cat([copies[i].flatten() for i in group]).cpu()
        parts = flat.split([copies[i].numel() for i in group])
        for i, part in zip(group, parts, strict=True):
            copies[i] = part.view(copies[i].shape)
    return copies


def _widest(value: Tensor) -> tuple[str, torch.dtype]:
    if value.is_complex():
        return "complex", torch.complex128
    if value.is_floating_point():
        return "float", torch.float64
    return "integer", torch.int64
