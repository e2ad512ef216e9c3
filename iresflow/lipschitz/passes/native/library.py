"""The compiled passes of ``cpp/chain.cpp``: built once for a machine, with its own compiler (GCC).

The object goes to ``$XDG_CACHE_HOME/iresflow`` (``~/.cache`` by default), named after its source,
the compiler and the processor, so that none is mistaken for another.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from subprocess import SubprocessError

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = ["SCALARS", "Link", "Shape", "is_plain", "library"]

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")

FUNCTIONS = {
    "pack": 0,
    "forward": 2,
    "tangents": 2,
    "vjp": 2,
    "power_sums": 9,
    "adjoint": 4,
    "bidiagonal": 1,
}
"""Their names, and how many pointers to numbers each takes behind its shape and links."""

SCALARS = {torch.float32: "float", torch.float64: "double"}
"""What the functions' names end with, by their type of float."""


class Link(ctypes.Structure):
    """``Link`` of ``cpp/links.h``; pointers are addresses, 0 for none."""

    _fields_ = (
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("side", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("beta", ctypes.c_double),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_stride", ctypes.c_int64),
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
    """Whether it is numbers in a CPU's memory and nothing else: no tangent, no batch of `vmap`."""
    if tensor.device.type != "cpu":
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # of what has no storage
        return False
    return unpack_dual(tensor).tangent is None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The passes, or None, with a warning in the log, where they can't be built or loaded."""
    try:
        loaded = _loaded()
        for scalar in SCALARS.values():
            size = getattr(loaded, f"packed_size_{scalar}")
            size.argtypes, size.restype = [ctypes.POINTER(Link)], ctypes.c_int64
            for name, pointers in FUNCTIONS.items():
                function = getattr(loaded, f"{name}_{scalar}")
                function.argtypes = [ctypes.POINTER(Shape), ctypes.POINTER(Link)]
                function.argtypes += [ctypes.c_void_p] * pointers
                function.restype = ctypes.c_double if name == "bidiagonal" else None
    except (OSError, RuntimeError, AttributeError, ValueError, SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        lines = [line for line in reason.strip().splitlines() if line] or [type(error).__name__]
        logger.warning("the native passes can't be built, PyTorch's run instead: %s", lines[0])
        return None
    return loaded


def _loaded() -> ctypes.CDLL:
    path = _built()
    refused = path.with_suffix(".refused")
    if refused.exists():
        raise OSError(f"{path} can't be loaded: {refused.read_text()} (delete {refused} to retry)")
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # a broken file, as a full disk may leave
        path.unlink()
    try:
        return ctypes.CDLL(str(_built()))
    except OSError as error:  # of the machine: that it is built in vain once is enough
        refused.write_text(str(error))
        raise


def _built() -> Path:
    """The path of the object, built if it is not there."""
    files = sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")])
    sources = [path.read_text(encoding="utf-8") for path in files]
    compiler = shlex.split(
        os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or ""
    )
    if not compiler:
        raise FileNotFoundError("there is no C++ compiler (c++, g++ or $CXX)")
    version = _run(*compiler, "--version")
    key = "\0".join((*sources, *FLAGS, *compiler, version, _processor()))
    name = f"chain-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iresflow"
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Another process may build the same at the same time: each moves a whole file into place.
    with tempfile.TemporaryDirectory(dir=folder) as build:
        path = Path(build)
        main, compiled = str(SOURCES / "chain.cpp"), str(path / "chain.o")
        _run(*compiler, *FLAGS, "-fopenmp", "-c", main, "-o", compiled)
        # Linked without OpenMP: its symbols are those of the runtime that torch has loaded, so
        # that both share one pool of threads.
        _run(*compiler, "-shared", compiled, "-o", str(path / name))
        os.replace(path / name, target)
    return target


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    return done.stdout


def _processor() -> str:
    """What the compiler takes for native: the processor's extensions, or its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
