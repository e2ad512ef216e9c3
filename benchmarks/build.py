"""Seconds to build, initialise, switch, store, load and copy a large model.

``python benchmarks/build.py [--model cifar10|digits] [--busy 3] [--native]``. The model of
``cifar10`` is that of the thesis: 3 x 32 blocks of 512 channels, 31 million parameters. With
``--busy N``, N other processes compute at the same time. Times are wall time and, in brackets, the
processor time of all threads, which a busy machine moves less.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import iresflow
from iresflow.models.storage import write_file

MODELS = {
    "cifar10": {
        "shape": (3, 32, 32),
        "blocks": (32, 32, 32),
        "hidden": 512,
        "activation": "elu",
        "coeff": 0.9,
        "normalization": "power-iteration",
        "alpha": 0.0,
    },
    "digits": {"shape": (1, 8, 8), "blocks": (0, 8, 4), "hidden": 32},
}

BUSY = "import numpy as np\na = np.random.rand(500, 500)\nwhile True: a = np.tanh(a @ a)"
"""A process that keeps a processor busy, with products of matrices on one thread."""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many other processes at work."""
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    others = [
        subprocess.Popen([sys.executable, "-c", BUSY], env=environment) for _ in range(count)
    ]
    try:
        time.sleep(1 if count else 0)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def timed(name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:<34} {wall:8.2f} s  ({cpu:.2f})", flush=True)


def measure(model: str, folder: Path) -> None:
    """All of them once, in the order of a model's life."""
    torch.manual_seed(0)
    with timed("build"):
        flow = iresflow.ImageFlow(**MODELS[model])
    x = torch.rand(16, *flow.shape)
    with timed("initialise from 16 images"):
        flow.initialize(x)
    with timed("eval after a step, with its norms"):
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(1e-4 * torch.randn_like(parameter))
        flow.eval()
        state = flow.state_dict()
    with timed("train, and eval again"):
        flow.train().eval()
    write_file({"model": flow.payload()}, folder / "model.pt")
    with timed("load"), warnings.catch_warnings():
        # Certifying takes longer than all else, and benchmarks/certify.py measures it.
        warnings.simplefilter("ignore", iresflow.CertificateWarning)
        loaded = iresflow.load(folder / "model.pt")
    with timed("deepcopy"):
        copied = copy.deepcopy(loaded)
    assert all(torch.equal(value, state[name]) for name, value in copied.state_dict().items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="cifar10")
    parser.add_argument("--busy", type=int, default=0, help="other processes at work")
    parser.add_argument("--native", action="store_true", help="after iresflow.compile_kernels()")
    options = parser.parse_args()
    if options.native:
        iresflow.compile_kernels()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.model}, "
        f"{options.busy} other processes"
    )
    with busy(options.busy), tempfile.TemporaryDirectory() as folder:
        measure(options.model, Path(folder))


if __name__ == "__main__":
    main()
