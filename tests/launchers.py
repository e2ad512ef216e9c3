"""Launchers of several processes, which become forks of the launcher, not new interpreters.

    launchers.py FILE

The file is a list of launches, in JSON, which run at the same time: each a dictionary with
``command``, of torchrun or ``accelerate launch``; ``environment``, variables that are added; and
``host``, a network namespace, or None for this one.
"""

import ctypes
import json
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

from torch.distributed import run

CLONE_NEWNET = 0x40000000


def main() -> int:
    with open(sys.argv[1]) as file:
        launches = json.load(file)
    children = []
    for launch in launches:
        child = os.fork()
        if child == 0:
            become(**launch)
        children.append(child)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


def become(command: Sequence[str], environment: dict[str, str], host: str | None) -> None:
    """Turns this process into a launcher, and ends it as that ends."""
    code = 1
    try:
        if host is not None:
            enter(host)
        os.environ.update(environment)
        launcher, *sys.argv[1:] = command
        if launcher == "torchrun":
            run.main()
        else:
            from accelerate.commands.launch import main as launch

            launch()
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def enter(host: str) -> None:
    """Moves this process into a network namespace."""
    library = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{host}") as file:
        if library.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"no way into {host}")


def start(*command: str) -> None:
    """Runs a script as ``python -u SCRIPT ARGUMENTS``, in a process of a launcher."""
    sys.argv = [word for word in command if word != "-u"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    elastic = run.elastic_launch

    def forking(config: Any, entrypoint: object) -> Any:
        config.start_method = "fork"
        return elastic(config, start)

    run.elastic_launch = forking
    sys.exit(main())
