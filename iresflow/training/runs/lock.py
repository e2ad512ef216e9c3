"""One process at a time: a lock that goes with the process that holds it."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import final
from warnings import warn

from iresflow.errors import RunError
from iresflow.training.loop.processes import Alone, Processes

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock", "locked"]


@final
class Lock:
    """A file that one process at a time may hold, of all that can see it.

    The system lets go of it when the process ends, however that happens: a file that a killed
    process has left behind keeps nobody out.

    Arguments:
        path: The file; it is there only while the lock is held, or after a kill.
        use: What the holder does, as the end of "another process ...".
    """

    def __init__(self, path: Path, use: str) -> None:
        self._path, self._use = path, use
        self._handle: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            RunError: another process holds it, or the file can't be made.

        Warns:
            UserWarning: the file system has no locks, and nothing keeps others out.
        """
        while self._handle is None:
            handle = self._open()
            try:
                self._claim(handle)
                # The holder before may have removed the file after it was opened here.
                if not self._is_current(handle):
                    continue
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(_name()).encode())
                self._handle, handle = handle, -1
            finally:
                if handle >= 0:
                    os.close(handle)

    def release(self) -> None:
        """Lets go of the lock, if it is held."""
        if self._handle is None:
            return
        if self._is_current(self._handle):
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._handle)
        self._handle = None

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RunError(f"could not lock {self._path}: {error.strerror}") from None

    def _claim(self, handle: int) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "this system has none")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process {self._use}: {_holder(handle)}. Wait for it to end, or stop it"
            ) from None
        except OSError as error:
            warn(
                f"{self._path} can't be locked ({error.strerror}): take care that no other "
                f"process {self._use} at the same time",
                stacklevel=4,
            )

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._path))
        except OSError:
            return False


@contextlib.contextmanager
def locked(path: Path, use: str, processes: Processes | None = None) -> Iterator[None]:
    """Holds a `Lock` in the main one of some processes. Errors, in all of them: `Lock.acquire`."""
    lock = Lock(path, use)
    (processes or Alone()).on_main(lock.acquire)
    try:
        yield
    finally:
        lock.release()


def _name() -> dict[str, str | int]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _holder(handle: int) -> str:
    try:
        values = json.loads(os.pread(handle, 1000, 0))
        return f"process {values['pid']} on {values['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which"  # it took the lock this very moment
