"""Pointwise functions that run in one pass over memory where a compiler is at hand.

A chain's time beside its convolutions goes into pointwise functions of large tensors. PyTorch runs
each of their operations over all of memory; ``torch.compile`` makes one loop of them. It takes
some seconds the first time (the result is kept on disk), so it is asked for: training does, and
`compile_kernels` does anywhere else. Where there is no compiler, the functions run as they are.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from types import FunctionType
from typing import Any, final

import torch
from torch import Tensor

from iresflow.ambient import unpinned

__all__ = ["Kernel", "compile_kernels", "compiled_kernels", "compiles", "kernels_compile"]

logger = logging.getLogger(__name__)

WARM_UP = 1 << 20
"""Entries of the tensors that a kernel is compiled with: it keeps the number of threads that suits
them, and large tensors matter."""

LARGE = 150_000
"""Entries of a tensor for which compiling pays: smaller ones gain less than it costs."""

VARIANTS = 32
"""Variants of one kernel at most: types of float, and numbers of directions (0, 1, more)."""


@final
class _State:
    """Whether kernels are compiled, for the whole process, as with ``torch.backends``."""

    enabled = False


def compile_kernels(enabled: bool = True) -> None:
    """Turns compiled pointwise kernels on or off for this process; they are off at first.

    Results differ by rounding only. Where compiling fails, a warning is logged once, and the
    functions run unfused.
    """
    _State.enabled = enabled


@contextmanager
def compiled_kernels() -> Iterator[None]:
    """Turns them on for a region of code."""
    before = _State.enabled
    compile_kernels()
    try:
        yield
    finally:
        compile_kernels(before)


def kernels_compile() -> bool:
    """Whether pointwise kernels are compiled when they are next called."""
    return _State.enabled


def compiles(x: Tensor) -> bool:
    """Whether kernels for tensors of this size are to be compiled."""
    return _State.enabled and x.numel() >= LARGE


@final
class Kernel:
    """A function of tensors, compiled on demand for any size.

    Arguments:
        function: Pointwise but for sums, of tensors that have the same last dimension, and of
            scalars. It must not depend on state.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._compiled: Callable[..., Any] | None = None
        self._warm: set[tuple[object, ...]] = set()

    def __call__(self, *operands: Tensor | None) -> Any:  # noqa: ANN401 (as the function)
        if not _State.enabled:
            return self.function(*operands)
        variant = tuple(_variant(x) for x in operands)
        if variant not in self._warm and not self._warm_up(variant, operands):
            return self.function(*operands)
        assert self._compiled is not None
        with unpinned():
            return self._compiled(*operands)

    def _warm_up(self, variant: tuple[object, ...], operands: tuple[Tensor | None, ...]) -> bool:
        if self._compiled is None:
            self._compiled = _compile(self.function)
        try:
            with unpinned():
                self._compiled(*(_enlarged(x) for x in operands))
        except Exception as error:  # of the compiler, of any kind: the function itself is sound
            reason = str(error).strip().splitlines()
            logger.warning(
                "torch.compile can't be used here, pointwise kernels run unfused: %s",
                reason[0] if reason else type(error).__name__,
            )
            _State.enabled = False
            return False
        self._warm.add(variant)
        return True


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for any size, for `VARIANTS` of its own."""
    if "isolate_recompiles" in signature(torch.compile).parameters:
        apart: dict[str, Any] = {"recompile_limit": VARIANTS, "isolate_recompiles": True}
        return torch.compile(function, dynamic=True, fullgraph=True, **apart)
    # Before PyTorch 2.13, variants are counted for each code object (which activations share), and
    # their limit is one of the process.
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        closure=function.__closure__,
    )
    compiled = torch.compile(own, dynamic=True, fullgraph=True)

    def call(*operands: Tensor | None) -> Any:  # noqa: ANN401 (as the function)
        with torch._dynamo.config.patch(cache_size_limit=VARIANTS):
            return compiled(*operands)

    return call


def _variant(x: Tensor | None) -> object:
    """What a compiled function is specialised for."""
    return None if x is None else (x.dtype, x.device, tuple(min(n, 2) for n in x.shape[:-1]))


def _enlarged(x: Tensor | None) -> Tensor | None:
    """A tensor of many entries in place of one of few; scalars stay as they are."""
    if x is None or x.ndim == 0:
        return x
    return torch.ones(*x.shape[:-1], WARM_UP, dtype=x.dtype, device=x.device)
