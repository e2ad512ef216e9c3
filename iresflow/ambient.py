"""The package's own arithmetic, whatever switches of PyTorch the caller has set around it.

Three of them would change what is computed: `torch.autocast`, which a thread turns on for a region
of its code; the reduced formats of float32 products (TF32 on GPUs, bfloat16 on some CPUs), which
the whole process shares; and the default device. Bounds, solvers and error estimates count on all
digits of their type. So whatever the package computes runs inside one of the guards below: the
public methods of flows and residual blocks open one, and backward passes in closed form keep that
of their forward pass (`keeps_arithmetic`). Other maps are elementwise, which no switch touches.

Guards nest, also in several threads at once. Products are exact as long as any thread asks for it,
and when the last guard has ended, the switches are what they were before the first, whoever has
set one in the meantime. A compiler does (`unpinned`).
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, Self, TypeVar, final

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext

from iresflow.switches import KEYS, Key, Wish, read, turn

__all__ = [
    "WideFloats",
    "full_precision",
    "keeps_arithmetic",
    "own_arithmetic",
    "reduced_precision",
    "unpinned",
]

P = ParamSpec("P")
R = TypeVar("R")


@final
class Guard:
    """A region of code with an arithmetic of its own: a context manager, and a decorator.

    Arguments:
        wish: Of float32 products; None for the one of the region around, or else "ieee".
    """

    __slots__ = ("_autocast", "_device", "_now", "_outer", "_wish")

    def __init__(self, wish: Wish | None) -> None:
        self._wish = wish

    def __enter__(self) -> None:
        self._autocast = _leave_autocast()
        self._device = _leave_default_device()
        self._outer: Wish | None = getattr(_THREAD, "wish", None)
        self._now: Wish = self._wish or self._outer or "ieee"
        if self._now != self._outer:
            _SWITCHES.replace(self._outer, self._now)
            _THREAD.wish = self._now

    def __exit__(self, *_: object) -> None:
        if self._now != self._outer:
            _THREAD.wish = self._outer
            _SWITCHES.replace(self._now, self._outer)
        if self._device is not None:
            _pop_mode()
        for kind in self._autocast:
            torch.set_autocast_enabled(kind, True)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        wish = self._wish

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            with Guard(wish):
                return function(*args, **kwargs)

        return guarded


def _leave_autocast() -> list[str]:
    """Turns autocast off in this thread; returns the kinds of devices that had it on."""
    if not torch._C._is_any_autocast_enabled():
        return []
    kinds = [kind for kind in AUTOCAST_DEVICES if torch.is_autocast_enabled(kind)]
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    return kinds


def _leave_default_device() -> DeviceContext | None:
    """Makes the CPU this thread's default device, where it is not; returns what ends that."""
    if torch._C._len_torch_function_stack() == 0:
        return None
    modes = _get_current_function_mode_stack()
    devices = [mode.device.type for mode in modes if isinstance(mode, DeviceContext)]
    if devices[-1:] in ([], ["cpu"]):
        return None
    # On top of all modes, where its device is taken first. Its own method would put it below
    # them, where PyTorch before 2.8 allows only one.
    context = DeviceContext("cpu")
    _push_mode(context)
    return context


def full_precision() -> Guard:
    """All digits of float32: what bounds and evaluations need."""
    return Guard("ieee")


def reduced_precision() -> Guard:
    """TF32 for products of float32, on hardware that has it; otherwise as `full_precision`."""
    return Guard("tf32")


def own_arithmetic() -> Guard:
    """All digits of float32, unless a `reduced_precision` around it asks for fewer."""
    return Guard(None)


class WideFloats:
    """A module that refuses to be made narrower than float32, where no bound means anything."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        dtype = fn(torch.zeros((), dtype=torch.float32)).dtype  # before any weight is changed
        if dtype.is_floating_point and dtype.itemsize < 4:
            raise ValueError(
                f"a {type(self).__name__} computes in float32 or float64, not in {dtype}, whose "
                "digits suffice for no inverse and no likelihood. Training may take 16-bit "
                "products in the series alone: ReducedPrecision(PowerSeries()), or "
                "training.precision=mixed with log_det.name=power-series"
            )
        return super()._apply(fn, recurse)  # type: ignore[misc]  # of nn.Module


F = TypeVar("F", bound=type[torch.autograd.Function])


def keeps_arithmetic(function: F) -> F:
    """Makes a function's backward pass run in the arithmetic of its forward pass.

    A backward pass runs where the caller starts it, and on a GPU in a thread of its own.
    """
    forward, backward = function.forward, function.backward

    @functools.wraps(forward)
    def noting(ctx: Any, *args: Any) -> Any:  # noqa: ANN401 (as autograd has them)
        ctx.wish = getattr(_THREAD, "wish", None)
        return forward(ctx, *args)

    @functools.wraps(backward)
    def guarded(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401
        with Guard(ctx.wish):
            return backward(ctx, *grads)

    # One method stands in for another, of the same arguments.
    function.forward = staticmethod(noting)  # type: ignore[method-assign]
    function.backward = staticmethod(guarded)  # type: ignore[method-assign]
    return function


@final
class _Switches:
    """The process' switches for products of float32, with the threads' wishes counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Wish, int] = {"ieee": 0, "tf32": 0}
        self._set: Wish | None = None
        self._before: list[tuple[Key, str]] = []
        self._changed: list[tuple[Key, str]] = []

    def replace(self, old: Wish | None, new: Wish | None) -> None:
        """Takes one thread's wish back and notes another; None for none."""
        with self._lock:
            if new is not None:
                self._counts[new] += 1
            if old is not None:
                self._counts[old] -= 1
            wanted: Wish | None = None
            if any(self._counts.values()):
                wanted = "ieee" if self._counts["ieee"] else "tf32"
            if wanted == self._set:
                return
            if self._set is not None:
                self._restore()
            if wanted is not None:
                self._turn(wanted)
            self._set = wanted

    def _turn(self, wish: Wish) -> None:
        # From all backends down to each operation: what then still says something else had been
        # set by itself, and only that is to be set. An inherited value is never made its own.
        self._before = [(key, read(key)) for key in KEYS]
        for key in KEYS:
            value = read(key)
            if value != wish:
                self._changed.append((key, value))
                turn(key, wish)

    def _restore(self) -> None:
        while self._changed:
            turn(*self._changed.pop())
        for key, value in self._before:
            if read(key) != value:  # someone else has set it since
                turn(key, "none")
            if read(key) != value:
                turn(key, value)


@contextmanager
def unpinned() -> Iterator[None]:
    """Around a call that may compile: the switch of products still follows those above it.

    When ``torch.compile`` has compiled, it sets the switch of matrix products to what it was. One
    that followed those above it then has that value as its own. (One that says the same by itself
    can't be told from these: it follows, too.)
    """
    followed = read(("cuda", "matmul")) == read(("cuda", "all"))
    try:
        yield
    finally:
        if followed:
            turn(("cuda", "matmul"), "none")


# PyTorch lists them itself since 2.8.
AUTOCAST_DEVICES: Sequence[str] = getattr(
    torch._C, "_autocast_supported_devices", lambda: ("cpu", "cuda", "xpu", "hpu", "mps")
)()

_THREAD = threading.local()
_SWITCHES = _Switches()
