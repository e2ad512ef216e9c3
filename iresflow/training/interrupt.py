"""Ctrl-C that waits for the end of a step, so that what is saved belongs to one step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["deferred_interrupt"]


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turns SIGINT and SIGTERM into an event; a second signal ends the process as usual.

    Outside of the main thread, which alone receives signals, the event is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
