"""Items of an iterator, got ready before they are asked for."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T]:
    """The same items in the same order, of which a thread makes the next ones meanwhile.

    For what waits for a disk, or computes outside of Python, such as gathering samples of a split
    that is mapped from a file.

    Arguments:
        items: May be without end.
        depth: How many to keep ready, at least 1.

    Raises:
        ValueError: If ``depth`` is not allowed.
        Exception: Whatever the items raise, where the item would have come.
    """
    if depth < 1:
        raise ValueError(f"depth={depth}; allowed is 1 or more")
    return _ahead(items, depth)


def _ahead(items: Iterable[T], depth: int) -> Generator[T]:
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None, more: bool) -> None:
        while not stopped.is_set():
            try:
                return ready.put((item, error, more), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item, None, True)
                if stopped.is_set():
                    return
        except BaseException as error:
            put(None, error, False)
        else:
            put(None, None, False)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error, more = ready.get()
            if error is not None:
                raise error
            if not more:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
