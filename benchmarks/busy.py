"""Small models beside busy processes: training steps, log_prob and samples a second.

``python benchmarks/busy.py [--busy 0 3] [--threads 1 2] [--seconds 5]``. The model is that of the
digits. Each figure is the largest of several short runs, with the processor time of one call of
all threads; a machine with other work on it moves this less.
"""

import argparse
import time
from collections.abc import Callable

import torch
from build import MODELS, busy

import iresflow
from iresflow.bijections import dequantize

BATCH = 64


def rate(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Calls a second, the largest over parts of the time, and milliseconds of processor each."""
    call()
    best, least, end = 0.0, float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(3):
            call()
        best = max(best, 3 / (time.perf_counter() - wall))
        least = min(least, (time.process_time() - cpu) / 3)
    return best, 1000 * least


def calls(batch: int) -> dict[str, Callable[[], object]]:
    """A training step of so many digits, and what is asked of a trained model."""
    torch.manual_seed(0)
    flow = iresflow.ImageFlow(**MODELS["digits"], levels=17)
    images = torch.randint(0, 17, (batch, *flow.shape))
    x = dequantize(images, 17, dtype=torch.float32)
    flow.initialize(x)
    trained = iresflow.ImageFlow(**MODELS["digits"], levels=17).eval()
    trained.load_state_dict(flow.state_dict())
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()

    @torch.no_grad()
    def log_prob() -> None:
        trained.log_prob(x)

    @torch.no_grad()
    def one() -> None:
        trained.log_prob(x[:1])

    return {
        "training step": step,
        "log_prob": log_prob,
        "log_prob of one": one,
        "sample": lambda: trained.sample(batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    iresflow.compile_kernels()
    print(f"{'busy':>4} {'threads':>7}  {'':<16} {'a second':>9} {'CPU ms':>8}")
    measured = calls(options.batch)
    for others in options.busy:
        with busy(others):
            for threads in options.threads:
                torch.set_num_threads(threads)
                for name, call in measured.items():
                    best, cpu = rate(call, options.seconds)
                    print(f"{others:4} {threads:7}  {name:<16} {best:9.2f} {cpu:8.2f}", flush=True)


if __name__ == "__main__":
    main()
