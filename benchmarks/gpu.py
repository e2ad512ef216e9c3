"""What a GPU, or another device, does in a second: steps of training, densities, samples.

    python benchmarks/gpu.py                                   the presets below, random images
    python benchmarks/gpu.py --only cifar10 --set training.precision=tf32
    python benchmarks/gpu.py --only digits --device cpu --samples 16

A row is a preset (`configs/`) on images of its shape. Times are medians, with the device idle at
both ends. Memory is the most that PyTorch held in a step.
"""

import argparse
import itertools
import logging
import platform
import statistics
import time
from collections.abc import Callable

import torch
import yaml
from torch import Tensor

from iresflow import ImageFlow
from iresflow.commands.memory import keep_freed_memory
from iresflow.data import Dataset, Split
from iresflow.lipschitz.passes.kernels import compile_kernels
from iresflow.training import presets
from iresflow.training.build import build_model, resolve_device
from iresflow.training.config import Config
from iresflow.training.loop.batches import Batch, Share
from iresflow.training.loop.guard import guard_for
from iresflow.training.loop.optimizers import new_optimizer
from iresflow.training.loop.processes import Alone
from iresflow.training.loop.step import StepFunction
from iresflow.training.objectives.likelihood import MaximumLikelihood
from iresflow.training.sections import section_of
from iresflow.training.values import read_yaml

PRESETS = {"digits": (1, 8, 8), "mnist-small": (1, 28, 28), "mnist": (1, 28, 28)}
PRESETS |= {"cifar10-small": (3, 32, 32), "cifar10": (3, 32, 32)}
"""Presets, and the shapes of their images."""

WARM_UP = 8
"""Steps that are not counted: after them, a GPU replays what it has recorded."""


def synthetic(shape: tuple[int, ...], levels: int, samples: int) -> Dataset:
    """Smooth random images: what a model is built for, and trained on."""
    coarse = torch.rand(samples, shape[0], shape[1] // 4, shape[2] // 4)
    images = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    noise = torch.randint(0, levels // 8 + 1, images.shape)
    split = Split((images * (levels - levels // 8 - 1)).long().add(noise).to(torch.uint8))
    return Dataset("random", split, split, split, levels, ())


def synchronized(device: torch.device) -> None:
    """Waits until the device is idle."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def median_seconds(
    task: Callable[[], object], repeats: int, device: torch.device, warm_up: int = 2
) -> float:
    """Of one call, after some that are not counted."""
    seconds = []
    for _ in range(repeats + warm_up):
        synchronized(device)
        began = time.perf_counter()
        task()
        synchronized(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[warm_up:])


def stepping(flow: ImageFlow, images: Tensor, config: Config) -> Callable[[], object]:
    """A step of training, as `iresflow train` takes it."""
    training, guard = config.training, guard_for(images.device)
    optimizer = new_optimizer(list(flow.parameters()), training)
    shares = Share.split(len(images), training.accumulate)
    objective = MaximumLikelihood()
    steps = StepFunction(flow, objective, optimizer, guard, training, shares, Alone(), 0)
    numbers = itertools.count()
    return lambda: steps.take(next(numbers), Batch(images), 1e-4, lambda: (0.0, 0.0))


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Prints the row of one preset."""
    values = read_yaml(presets.find(name))
    for setting in arguments.set:
        path, _, value = setting.partition("=")
        section, _, option = path.partition(".")
        values.setdefault(section, {})[option] = yaml.safe_load(value)
    config = section_of(Config, values)
    torch.manual_seed(0)
    batch = config.training.batch_size
    dataset = synthetic(PRESETS[name], 17 if name == "digits" else 256, max(batch, 256))
    began = time.perf_counter()
    flow = build_model(config, dataset).to(device)
    images = dataset.train.values.to(device)
    with torch.no_grad():
        flow.initialize(flow.dequantize(images))
    synchronized(device)
    built = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    take = stepping(flow.train(), images[:batch], config)
    step = median_seconds(take, arguments.repeats, device, WARM_UP)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    flow.eval()
    certify = median_seconds(flow.certify, 1, device)
    asked = images[: arguments.samples]
    few = max(1, arguments.repeats // 4)
    with torch.no_grad():
        density = median_seconds(lambda: flow.bits_per_dim(asked), few, device)
        sample = median_seconds(lambda: flow.sample(len(asked)), few, device)
    print(
        f"{name:<14} {sum(p.numel() for p in flow.parameters()):>11,} {batch:6d} {built:8.1f} "
        f"{1000 * step:9.1f} {batch / step:9.0f} {memory:9.2f} {certify:9.2f} "
        f"{len(asked) / density:10.1f} {len(asked) / sample:10.1f}",
        flush=True,
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.OPTION=VALUE")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--samples", type=int, default=100, help="of densities and draws")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    logging.basicConfig()
    keep_freed_memory()
    device = resolve_device(arguments.device)
    compile_kernels()
    what = platform.processor() or platform.machine()
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    options = " ".join(arguments.set) or "presets as they are"
    print(f"torch {torch.__version__}, {what}; {options}\n")
    print(
        f"{'preset':<14} {'parameters':>11} {'batch':>6} {'build s':>8} {'step ms':>9} "
        f"{'images/s':>9} {'GiB':>9} {'certify s':>9} {'scored/s':>10} {'drawn/s':>10}"
    )
    for name in arguments.only:
        measure(name, arguments, device)


if __name__ == "__main__":
    main()
