"""How time and memory of a training step grow with the model, with fitted exponents.

One quantity at a time grows by a factor of 8 or more. The exponent is the slope of a straight line
through the logarithms. Time is the median over repeats; memory is what the forward pass keeps for
the backward pass, counted tensor by tensor (`benchmarks/memory.py` measures the process).

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only batch terms --repeats 9
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence

import numpy as np
import torch

import iresflow
from iresflow.commands.memory import keep_freed_memory
from iresflow.lipschitz.passes.kernels import compile_kernels
from iresflow.logdet import PowerSeries

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from step import CLOCKS, our_step, timed

BASE = {"pixels": 16, "channels": 32, "blocks": 4, "batch": 32, "terms": 5}

GROWTH: dict[str, tuple[tuple[int, ...], str]] = {
    # Expected: linear but in the channels, where a 1 x 1 convolution is quadratic and all else
    # linear. Pixels are those of a side: the image grows with their square.
    "pixels": ((8, 16, 32, 64), "2"),
    "channels": ((16, 32, 64, 128), "1 to 2"),
    "blocks": ((2, 4, 8, 16), "1"),
    "batch": ((8, 16, 32, 64), "1"),
    "terms": ((4, 8, 16, 32), "below 1"),  # the passes beside the series stay
}


def kept(flow: iresflow.ImageFlow, images: torch.Tensor) -> int:
    """Bytes of the distinct tensors that wait for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        flow.log_prob(images).mean()
    return sum(sizes.values())


def measure(repeats: int, **changed: int) -> tuple[float, int]:
    """Seconds of a step, and bytes kept, of the base model with some quantities changed."""
    s = {**BASE, **changed}
    torch.manual_seed(0)
    images = torch.rand(s["batch"], 1, s["pixels"], s["pixels"])
    estimator = PowerSeries(s["terms"])
    flow = iresflow.ImageFlow(
        (1, s["pixels"], s["pixels"]), (s["blocks"],), s["channels"], levels=2, log_det=estimator
    )
    flow.initialize(images)
    flow.train()
    step = our_step(flow, images)
    for _ in range(2):
        step()
    seconds = statistics.median(timed(step, CLOCKS["wall"]) for _ in range(repeats))
    return seconds, kept(flow, images)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit([math.log(v) for v in x], [math.log(v) for v in y], 1)[0])


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GROWTH, default=list(GROWTH))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    compile_kernels()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; base {BASE}")
    print(
        f"{'':<10}{'values':<20}{'ms a step':<28}{'MiB kept':<28}exponents: time, expected, memory"
    )
    for name in args.only:
        values, expected = GROWTH[name]
        seconds, sizes = zip(
            *(measure(args.repeats, **{name: value}) for value in values), strict=True
        )
        times = " ".join(f"{1000 * t:.0f}" for t in seconds)
        memory = " ".join(f"{size / 2**20:.1f}" for size in sizes)
        print(
            f"{name:<10}{' '.join(map(str, values)):<20}{times:<28}{memory:<28}"
            f"{exponent(values, seconds):.2f}, {expected}, {exponent(values, sizes):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
