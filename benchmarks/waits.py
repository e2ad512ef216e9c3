"""How often the host waits for a GPU, by what is asked and by place, on a pretended device.

    python benchmarks/waits.py [--places 3]

Each wait ends what a GPU can compute ahead, and costs tens of microseconds and more: for small
models they are most of the time. Counted are operations whose result or shape the host reads, and
copies between the two that are not pinned.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from iresflow import ImageFlow, Krylov, PowerSeries, RandomSeries
from iresflow.logdet import LogDetEstimator
from iresflow.training.config import TrainingConfig
from iresflow.training.loop.batches import Batch, Share
from iresflow.training.loop.guard import guard_for
from iresflow.training.loop.optimizers import new_optimizer
from iresflow.training.loop.processes import Alone
from iresflow.training.loop.step import StepFunction
from iresflow.training.objectives.likelihood import MaximumLikelihood

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pretended_device import PretendedDevice

SAMPLES = 8


def tasks(flow: ImageFlow, x: Tensor) -> dict[str, Callable[[], object]]:
    """What is asked of a model, by name; x lies on the device."""

    config, objective = TrainingConfig(batch_size=SAMPLES), MaximumLikelihood()
    images, share = (255 * x).to(torch.uint8), Share(SAMPLES, 0, SAMPLES)
    numbers = itertools.count()

    def stepping(estimator: LogDetEstimator) -> Callable[[], object]:
        optimizer = new_optimizer(list(flow.parameters()), config)
        guard = guard_for(x.device)
        steps = StepFunction(flow, objective, optimizer, guard, config, [share], Alone(), 0)

        def step() -> None:
            flow.train().log_det = estimator
            steps.take(next(numbers), Batch(images), 1e-4, lambda: (0.0, 0.0))

        return step

    def evaluated(ask: Callable[[], object]) -> Callable[[], object]:
        return lambda: (flow.eval(), ask())

    return {
        "training step, fixed terms": stepping(PowerSeries(8)),
        "training step, tolerance": stepping(PowerSeries(20, tol=1e-4)),
        "training step, random series": stepping(RandomSeries()),
        "training step, Krylov": stepping(Krylov(tol=1e-4)),
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
            ask()  # the first time in this mode certifies, and learns how long series are
            device.waits.clear()
            ask()
            print(f"{name:32s} {sum(device.waits.values()):5d}")
            for place, count in device.waits.most_common(arguments.places):
                print(f"{'':32s} {count:5d}  {place}")


if __name__ == "__main__":
    main()
