"""How many threads an operation of torch runs on.

A parallel operation ends when its last thread does. On a busy machine that thread waits for a
processor for some milliseconds, however small its share: many small operations are faster on one.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import torch

__all__ = ["threads_for"]

WORTH = 1e9
"""Floating-point operations from which on several threads pay."""


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Runs what the calling thread asks of torch on one thread where it is little.

    No other Python thread is affected: ``torch.set_num_threads`` would also set what threads that
    begin in the meantime get for good.

    Arguments:
        operations: Of one call into torch, in floating-point operations.
    """
    before = torch.get_num_threads()
    if operations >= WORTH or before == 1:
        yield
        return
    runtime = _runtime()
    blas = runtime.set_threads(1, 1)
    try:
        yield
    finally:
        runtime.set_threads(before, blas)


class _Runtime(Protocol):
    def set_threads(self, count: int, blas: int) -> int:
        """Sets the calling thread's numbers; returns that of the BLAS before."""
        ...


class _OwnThread:
    """OpenMP's and MKL's own settings, which hold for the calling thread alone.

    Raises:
        OSError, AttributeError: torch was built without one of them, or hides it.
    """

    def __init__(self) -> None:
        # Names are looked up in the libraries that torch has loaded, too.
        library = ctypes.CDLL(torch._C.__file__)
        self._openmp = library.omp_set_num_threads
        self._mkl = (
            library.MKL_Set_Num_Threads_Local if torch.backends.mkl.is_available() else None
        )

    def set_threads(self, count: int, blas: int) -> int:
        self._openmp(count)
        return 0 if self._mkl is None else self._mkl(blas)


class _AllThreads:
    """torch's setting, where there is no other."""

    def set_threads(self, count: int, blas: int) -> int:
        del blas
        torch.set_num_threads(count)
        return 0


@cache
def _runtime() -> _Runtime:
    try:
        return _OwnThread()
    except (OSError, AttributeError):
        return _AllThreads()
