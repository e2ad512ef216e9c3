"""The compiled passes of ``cpp/chain.cpp`` as functions, and the tensors that they take."""

import ctypes
import functools
import logging
from subprocess import SubprocessError

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from iresflow.lipschitz.passes.native.build import load

__all__ = ["SCALARS", "Link", "Shape", "is_plain", "library", "plain"]

logger = logging.getLogger(__name__)

FUNCTIONS = {
    "pack": 0,
    "forward": 2,
    "tangents": 2,
    "vjp": 2,
    "power_sums": 9,
    "krylov": 5,
    "dense": 2,
    "adjoint": 4,
    "solve": 7,
    "bidiagonal": 2,
}
"""Their names, and how many pointers to numbers each takes after its shape and links."""

SCALARS = {torch.float32: "float", torch.float64: "double"}
"""What the functions' names end with, by their type of float."""


class Link(ctypes.Structure):
    """``Link`` of ``cpp/links.h``; pointers are addresses, 0 for none."""

    _fields_ = (
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("side", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("beta", ctypes.c_double),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_stride", ctypes.c_int64),
        ("bias_step", ctypes.c_int64),
        ("matrix", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("slope", ctypes.c_void_p),
        ("tangent", ctypes.c_void_p),
        ("weight_gradient", ctypes.c_void_p),
        ("bias_gradient", ctypes.c_void_p),
        ("beta_gradient", ctypes.c_void_p),
    )


class Shape(ctypes.Structure):
    """``Shape`` of ``cpp/links.h``."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("links", "samples", "directions", "height", "width", "terms")
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether it is numbers in a CPU's memory, as they are read there, and nothing else.

    Others have no memory (of `vmap`, or zeros that are not written out), have it elsewhere or in
    another form (sparse), are still to be negated, or have a tangent or operations of their own.
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu":
        return False
    if tensor.layout != torch.strided or tensor.is_neg() or tensor._is_zerotensor():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # of what has no storage
        return False
    return unpack_dual(tensor).tangent is None


def plain(tensor: Tensor) -> Tensor:
    """The same numbers, written out in memory if need be, for a tensor without a graph."""
    return tensor if is_plain(tensor) else torch.zeros_like(tensor).copy_(tensor)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The passes, or None, with a warning in the log, where they can't be built or loaded.

    They raise a MemoryError where there is not enough memory.
    """
    try:
        loaded = load()
        for scalar in SCALARS.values():
            size = getattr(loaded, f"packed_size_{scalar}")
            size.argtypes, size.restype = [ctypes.POINTER(Link)], ctypes.c_int64
            for name, pointers in FUNCTIONS.items():
                function = getattr(loaded, f"{name}_{scalar}")
                function.argtypes = [ctypes.POINTER(Shape), ctypes.POINTER(Link)]
                function.argtypes += [ctypes.c_void_p] * pointers
                function.restype, function.errcheck = ctypes.c_int, _check
    except (OSError, RuntimeError, AttributeError, ValueError, SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        lines = [line for line in reason.strip().splitlines() if line] or [type(error).__name__]
        logger.warning("the native passes can't be built, PyTorch's run instead: %s", lines[0])
        return None
    return loaded


def _check(status: int, *_: object) -> int:
    if status:
        raise MemoryError("a native pass found not enough memory: take fewer samples at a time")
    return status
