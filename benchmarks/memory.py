"""Peak memory of a training step, ours and the published reference's, each in its own process.

The peak is that of the resident set over the steps, above what the process held before the first:
every measurement starts afresh, since a process gives little memory back. MNIST shapes, as in
``benchmarks/step.py``.

    python benchmarks/memory.py
    python benchmarks/memory.py --no-reference --rows 16,4,5 64,4,5
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace

import torch

from iresflow.bijections import ResidualBlock
from iresflow.lipschitz.passes.kernels import compile_kernels
from iresflow.logdet import Krylov, PowerSeries

sys.path.insert(0, __file__.rsplit("/", 1)[0])
import step as steps

BASE = steps.SHAPES["mnist"]
STEPS = 3

ROWS = (
    (16, 4, 5),
    (32, 4, 5),
    (64, 4, 5),
    (128, 4, 5),
    (64, 1, 5),
    (64, 2, 5),
    (64, 8, 5),
    (64, 4, 3),
    (64, 4, 10),
    (64, 4, 20),
)
"""Batch, blocks of each of three scales, and terms of the series."""


def peak() -> int:
    """Bytes of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(what: str, batch: int, blocks: int, terms: int) -> None:
    """Prints the bytes that one configuration adds; runs in a process of its own."""
    shape = replace(BASE, batch=batch, blocks=(blocks,) * 3)
    images = torch.rand(batch, *shape.image)
    warm = torch.rand(2, *shape.image)  # libraries take their buffers
    compile_kernels()
    if what == "normflows":
        run = steps.reference_step(shape, terms - 1, images)
        steps.reference_step(shape, 2, warm)()
    else:
        estimator = Krylov(terms, tol=0) if what == "Krylov" else PowerSeries(terms)
        flow = steps.our_flow(shape, estimator, images[:2])
        for module in flow.modules():
            if isinstance(module, ResidualBlock):
                module.branch.recompute = what == "recomputed"
        run = steps.our_step(flow, images)
        steps.our_step(steps.our_flow(shape, estimator, warm), warm)()
    before = peak()
    for _ in range(STEPS):
        run()
    print(json.dumps(peak() - before))


def added(what: str, batch: int, blocks: int, terms: int) -> float:
    """MiB, measured in a new process."""
    settings = [str(n) for n in (batch, blocks, terms)]
    command = [sys.executable, __file__, "--measure", what, *settings]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1]) / 2**20


def row(text: str) -> tuple[int, int, int]:
    """An entry of `ROWS`, from three numbers with commas between them."""
    batch, blocks, terms = map(int, text.split(","))
    return batch, blocks, terms


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rows",
        nargs="+",
        type=row,
        default=ROWS,
        metavar="BATCH,BLOCKS,TERMS",
        help="blocks are those of each of three scales",
    )
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, *numbers = args.measure
        measure(what, *map(int, numbers))
        return
    peers = ["ours", "recomputed", "Krylov"] + ["normflows"] * (not args.no_reference)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; MiB above the start")
    print(f"{'batch':>6}{'blocks':>8}{'terms':>7}" + "".join(f"{peer:>12}" for peer in peers))
    for batch, blocks, terms in args.rows:
        cells = "".join(f"{added(peer, batch, blocks, terms):12.0f}" for peer in peers)
        print(f"{batch:6}{3 * blocks:8}{terms:7}{cells}", flush=True)


if __name__ == "__main__":
    main()
