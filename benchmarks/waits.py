"""How often the host waits for a GPU, by what is asked and by place, on a pretended device.

    python benchmarks/waits.py [--places 3]

Each wait ends what a GPU can compute ahead, and costs tens of microseconds and more: for small
models they are most of the time. Counted are operations whose result or shape the host reads, and
copies between the two that are not pinned.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from iresflow import ImageFlow, Krylov, PowerSeries, RandomSeries
from iresflow.logdet import LogDetEstimator

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pretended_device import PretendedDevice

SAMPLES = 8


def tasks(flow: ImageFlow, x: Tensor) -> dict[str, Callable[[], object]]:
    """What is asked of a model, by name; x lies on the device."""

    def step(estimator: LogDetEstimator) -> None:
        flow.train()
        z, log_det = flow(x, log_det=estimator, check=False)
        (-(flow.base.log_prob(z) + log_det).mean()).backward()

    def evaluated(ask: Callable[[], object]) -> Callable[[], object]:
        return lambda: (flow.eval(), ask())

    return {
        "training step, fixed terms": lambda: step(PowerSeries(8)),
        "training step, tolerance": lambda: step(PowerSeries(20, tol=1e-4)),
        "training step, random series": lambda: step(RandomSeries()),
        "transform": evaluated(lambda: flow.transform(x)),
        "log_prob": evaluated(lambda: flow.log_prob(x)),
        "likelihood": evaluated(lambda: flow.likelihood(x)),
        "log_prob, Krylov(tol=1e-4)": evaluated(
            lambda: flow.log_prob(x, log_det=Krylov(tol=1e-4))
        ),
        "sample": evaluated(lambda: flow.sample(SAMPLES)),
        "gradient of an inverse": evaluated(
            lambda: flow.inverse(flow.transform(x).detach()).sum().backward()
        ),
        "certify": evaluated(flow.certify),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--places", type=int, default=3, help="places of each task to print")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    flow = ImageFlow((1, 8, 8), blocks=(1, 1), hidden=8)
    x = torch.rand(64, 1, 8, 8)
    flow.initialize(x)
    print(f"{len(list(flow.blocks()))} blocks, {SAMPLES} samples\n")
    with PretendedDevice() as device:
        asked = tasks(flow.cuda(), x[:SAMPLES].cuda())
        for name, ask in asked.items():
            ask()  # the first time in this mode certifies
            device.waits.clear()
            ask()
            print(f"{name:32s} {sum(device.waits.values()):5d}")
            for place, count in device.waits.most_common(arguments.places):
                print(f"{'':32s} {count:5d}  {place}")


if __name__ == "__main__":
    main()
