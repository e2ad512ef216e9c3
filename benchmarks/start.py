"""Seconds until each verb's help has been printed, and how many of them torch takes.

``python benchmarks/start.py [--repeat 5] [--verbs "sample --help"]``. Each figure is the smallest
of several, each in a new process; the files were read before.
"""

import argparse
import subprocess
import sys
import time

VERBS = ["--help", "train --help", "sample --help", "evaluate --help", "certify --help"]
VERBS += ["relu --help", "relu frames --help"]


def seconds(command: list[str], repeat: int) -> float:
    """Of the fastest of several runs."""
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--verbs", nargs="+", default=VERBS, help="with their arguments")
    options = parser.parse_args()
    repeat = options.repeat
    torch = seconds(["-c", "import torch"], repeat)
    print(f"{'import torch':<24} {torch:6.2f} s")
    print(f"{'import iresflow':<24} {seconds(['-c', 'import iresflow'], repeat) - torch:+6.2f} s")
    for verb in options.verbs:
        more = seconds(["-m", "iresflow", *verb.split()], repeat) - torch
        print(f"{'iresflow ' + verb:<24} {more:+6.2f} s", flush=True)


if __name__ == "__main__":
    main()
