"""Items of an iterator, got ready before they are asked for."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

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
    return _ahead(iter(items), depth)


def _ahead(items: Iterator[T], depth: int) -> Generator[T]:
    pool, end = ThreadPoolExecutor(1), object()
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield cast(T, item)
    finally:
        pool.shutdown(cancel_futures=True)
