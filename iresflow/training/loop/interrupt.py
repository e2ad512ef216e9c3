"""Ctrl-C that waits for the end of a step, so that what is saved belongs to one step."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["deferred_interrupt"]


@contextmanager
def deferred_interrupt(echo: float = 0.0) -> Iterator[threading.Event]:
    """Turns SIGINT and SIGTERM into an event; a second signal ends the process as usual.

    Outside of the main thread, which alone receives signals, the event is never set.

    Arguments:
        echo: Seconds in which further signals are taken for the first one. A launcher passes on
            the Ctrl-C that the terminal has sent to its processes already.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()
        now = time.monotonic()
        first.append(now)
        if not echo:
            restore()
        elif now - first[0] > echo:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield asked
    finally:
        restore()
