"""Builds the compiled passes of ``cpp/chain.cpp``, once for a machine, with its own compiler.

The object goes to ``$XDG_CACHE_HOME/iresflow`` (``~/.cache`` by default), or where that can't be
written to, into a folder of this user among the temporary files. Its name says what it was built
of (its source, the compiler, the processor), so that none is mistaken for another, and ends with
the digest of its bytes: one that a full disk, a crash or a bad sector has damaged is never loaded,
since running it may end the process without a message, or give wrong numbers.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import SubprocessError

__all__ = ["load"]

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpp"

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")


def load() -> ctypes.CDLL:
    """The passes, built if no sound object is there.

    Raises:
        OSError, SubprocessError: it can't be built or loaded.
    """
    compiler = shlex.split(
        os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or ""
    )
    if not compiler:
        raise FileNotFoundError("there is no C++ compiler (c++, g++ or $CXX)")
    name, folders = _name(compiler), list(_folders())
    for folder in folders:
        if path := _sound(folder, name):
            return _opened(path)
    failure: OSError | SubprocessError = FileNotFoundError("there is no folder to build in")
    for folder in folders:
        try:
            path = _built_in(folder, name, compiler)
        except (OSError, SubprocessError) as error:
            logger.info("the native passes can't be built in %s: %s", folder, error)
            failure = error
        else:
            return _opened(path)
    raise failure


def _opened(path: Path) -> ctypes.CDLL:
    refused = path.with_suffix(".refused")
    if refused.exists():
        raise OSError(f"{path} can't be loaded: {refused.read_text()} (delete {refused} to retry)")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # of the machine: that it is built in vain once is enough
        with contextlib.suppress(OSError):
            refused.write_text(str(error))
        raise


def _name(compiler: list[str]) -> str:
    """What an object's name starts with."""
    files = sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")])
    sources = [path.read_text(encoding="utf-8") for path in files]
    version = _run(*compiler, "--version")
    key = "\0".join((*sources, *FLAGS, *compiler, version, _processor()))
    return f"chain-{_digest(key.encode())}"


def _folders() -> Iterator[Path]:
    """Where an object may lie, the first choice first."""
    with contextlib.suppress(RuntimeError):  # of a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iresflow"
    yield Path(tempfile.gettempdir()) / f"iresflow-{os.getuid()}"


def _sound(folder: Path, name: str) -> Path | None:
    """The object of a name that is as it was built, if there is one; damaged ones are removed."""
    with contextlib.suppress(OSError):
        _check_owner(folder)
        for path in sorted(folder.glob(f"{name}-*.so")):
            if _digest(path.read_bytes()) == path.stem.rpartition("-")[2]:
                return path
            logger.info("%s is damaged", path)
            path.unlink()
    return None


def _check_owner(folder: Path) -> None:
    """Raises a PermissionError where others can put objects into a folder: they would be run."""
    status = folder.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & stat.S_IWOTH:
        raise PermissionError(f"{folder} is open to others")


def _built_in(folder: Path, name: str, compiler: list[str]) -> Path:
    """The object, built anew in a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(folder)
    # Another process may build the same at the same time: each moves a whole file into place.
    with tempfile.TemporaryDirectory(dir=folder) as build:
        main, compiled = str(SOURCES / "chain.cpp"), f"{build}/chain.o"
        linked = Path(build) / "chain.so"
        _run(*compiler, *FLAGS, "-fopenmp", "-c", main, "-o", compiled)
        # Linked without OpenMP: its symbols are those of the runtime that torch has loaded, so
        # that both share one pool of threads.
        _run(*compiler, "-shared", compiled, "-o", str(linked))
        path = folder / f"{name}-{_digest(linked.read_bytes())}.so"
        _sync(linked)
        os.replace(linked, path)
    _sync(folder)
    return path


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that its name never precedes its bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


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
