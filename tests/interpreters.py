"""Programs in processes of their own, without the seconds that each would take to import torch.

One interpreter for all tests of a process imports torch and does nothing else, and forks of it
import what else programs need; each program runs in a fork of those, as it would in an
interpreter that has just been started.
"""

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]

LIMIT = 600
"""Seconds after which a program is ended."""

BARE = ()
"""Only torch is there before programs that can tell, or that bring an iresflow of theirs."""

READY = (
    *("torch._dynamo", "scipy.stats", "sklearn.datasets", "matplotlib.figure", "torchvision"),
    *("iresflow.commands.train", "iresflow.commands.sample", "iresflow.commands.evaluate"),
)
"""What is imported before all others: whatever trains a model."""


def run_module(name: str, *arguments: object, **options: Any) -> CompletedProcess[str]:
    """Runs a module as ``python -m`` does; see `run_program`."""
    code = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return run_program(code, *arguments, **options)


def run_program(
    program: str | Path,
    *arguments: object,
    environment: Mapping[str, object] | None = None,
    directory: Path = ROOT,
    imported: tuple[str, ...] = READY,
) -> CompletedProcess[str]:
    """Runs source code, or a file of it, in a process of its own.

    Arguments:
        program: The code, or the path of a file.
        arguments: Its command line.
        environment: What is added to this process' variables.
        directory: Where it runs.
        imported: Modules that are imported before it starts, beside torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        said, warned = Path(folder) / "stdout", Path(folder) / "stderr"
        request = {
            "imported": imported,
            "program": str(program),
            "file": isinstance(program, Path),
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(os.environ)
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            | {name: str(value) for name, value in (environment or {}).items()},
            "directory": str(directory),
            "stdout": str(said),
            "stderr": str(warned),
        }
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return CompletedProcess([str(program)], code, said.read_text(), warned.read_text())


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-P", __file__],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # which ends it
    return server


def _serve(requests: TextIO, answers: TextIO) -> None:
    """Answers each line of requests with the exit code of its program, minus a signal's number."""
    servers: dict[str, tuple[TextIO, TextIO]] = {}
    for line in iter(requests.readline, ""):
        request = json.loads(line)
        if modules := request.pop("imported", ()):
            key = " ".join(modules)
            if key not in servers:
                servers[key] = _forked_server(modules)
            asked, told = servers[key]
            print(json.dumps(request), file=asked, flush=True)
            code = told.readline().strip()
        else:
            child = os.fork()
            if child == 0:
                _run(request)
            code = str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(code, file=answers, flush=True)


def _forked_server(modules: Sequence[str]) -> tuple[TextIO, TextIO]:
    """A server that has imported more: where it reads requests, and where it answers."""
    (requests, asked), (told, answers) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(asked)  # or it would wait for itself
        for name in modules:
            import_module(name)
        _serve(os.fdopen(requests), os.fdopen(answers, "w"))
        os._exit(0)
    os.close(requests)
    os.close(answers)
    return os.fdopen(asked, "w"), os.fdopen(told)


def _run(request: dict[str, Any]) -> None:
    """Ends this process as a program that it runs would end its own."""
    code = 1
    try:
        _become(request)
        code = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        else:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined] (waits for threads)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # to take down all of torch's objects would take a second


def _become(request: dict[str, Any]) -> None:
    """Turns this process into one that was started with a program, and runs that."""
    signal.alarm(LIMIT)
    for name, number, mode in (("stdout", 1, "w"), ("stderr", 2, "w")):
        with open(str(request[name]), mode) as file:
            os.dup2(file.fileno(), number)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    tempfile.tempdir = None
    sys.path[1:1] = request["environment"]["PYTHONPATH"].split(os.pathsep)
    program = request["program"]
    sys.argv = [program if request["file"] else "-c", *request["arguments"]]
    if request["file"]:
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(main))


if __name__ == "__main__":
    import_module("torch")
    _serve(sys.stdin, sys.stdout)
