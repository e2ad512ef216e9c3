"""``iresflow relu analyse``: how invertible is one's own network near one's own data?"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from iresflow.commands.networks.figures import decay_figure, stages_figure
from iresflow.commands.networks.first_layers import Limits, report_attacks, report_preimages
from iresflow.commands.networks.own_networks import load_network, with_standardised_inputs
from iresflow.commands.reading.arguments import new_parser, parse
from iresflow.commands.report import Report
from iresflow.data import load_dataset
from iresflow.errors import UnsupportedNetworkError
from iresflow.relu.analysis import parse_first_layers
from iresflow.relu.networks.linearize import linearize
from iresflow.relu.stability.stage_spectra import StageSpectra, image_window, measure_stages
from iresflow.training.runs.directory import new_directory

__all__ = ["main"]

DESCRIPTION = """\
Reports how invertible an ordinary network is near some inputs: singular values and condition
numbers up to each of its stages, the number of units that are on, which inputs the first layers
map to the same output, and images that these layers can't tell apart. The first two are for any
network of PyTorch; the others are exact, and for the chain of affine maps and (leaky) ReLU that
the network begins with."""

MOVED = 450
"""Entries of the input that are moved where no window is asked for: seconds for a stage."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    options = parse(_parser(), arguments)
    samples, name = _samples(options)
    shape = tuple(samples.shape[1:])
    module = load_network(options.factory, _keywords(options.options), options.weights)
    if options.mean or options.std:
        mean, std = (_numbers(text) for text in (options.mean or "0", options.std or "1"))
        module = with_standardised_inputs(module, mean, std, shape[0])
    path = new_directory(options.runs, options.name or "relu-analyse")
    print(f"run         {path}", flush=True)
    report = Report(path, f"{options.factory} near {name}")
    began = perf_counter()
    near = samples[: options.samples]
    _note(report, options, module, near, name)
    _stages(report, module, near, _columns(options, shape))
    try:
        network = parse_first_layers(module, shape)
    except UnsupportedNetworkError as error:
        report.numbers("first layers", {"not read": str(error)})
    else:
        limits = Limits(options.depth, int(options.entries))
        report_preimages(report, network, near, limits)
        report_attacks(report, module, network, samples, options.attacks, limits)
    print(f"took        {(perf_counter() - began) / 60:.1f} minutes")
    print(f"results     {path / 'results.md'}, results.json, and the figures beside them")
    return 0


def _parser() -> ArgumentParser:
    parser = new_parser("relu analyse", DESCRIPTION)
    parser.add_argument(
        "factory",
        help="what makes the network: package.module:function, file.py:function, or a name of "
        "torchvision, such as resnet18",
    )
    parser.add_argument("--options", default="{}", help="its keyword arguments, as JSON")
    parser.add_argument("--weights", help="file with the network's state_dict")
    parser.add_argument(
        "--data", help="directory of images, or digits, mnist, cifar10, ...; else uniform noise"
    )
    parser.add_argument("--root", help="directory of a named data set; else $IRESFLOW_DATA")
    parser.add_argument("--shape", help="of the noise without --data, such as 3,32,32")
    parser.add_argument("--size", type=int, help="side that a directory's images are brought to")
    parser.add_argument("--channels", type=int, help="channels of a directory's images, 1 or 3")
    parser.add_argument("--mean", help="subtracted from images in [0, 1]: a number, or C of them")
    parser.add_argument("--std", help="they are divided by it: a number, or one for each channel")
    parser.add_argument("--samples", type=int, default=3, help="test samples that are looked at")
    parser.add_argument(
        "--window", type=int, help="side of the square in the middle whose pixels are moved"
    )
    parser.add_argument("--attacks", type=int, default=3, help="samples that are attacked")
    parser.add_argument("--depth", type=int, default=3, help="layers that are inverted, at most")
    parser.add_argument(
        "--entries", type=float, default=3e6, help="of a matrix that is inverted, at most"
    )
    parser.add_argument("--runs", default="runs", help="directory that holds the reports")
    parser.add_argument("--name", help="name of the report, part of its directory")
    parser.add_argument("--seed", type=int, default=0, help="chooses the samples")
    return parser


def _keywords(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options is {text!r}, and no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'--options is {text!r}; allowed is an object, such as {{"classes": 9}}')
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} are no numbers, such as 0.5,0.4,0.6") from None


def _samples(options: Namespace) -> tuple[Tensor, str]:
    """Inputs ``(N, *shape)`` in a random order, images in [0, 1], and the data set's name."""
    for name in ("samples", "attacks", "depth"):
        if getattr(options, name) < (name == "samples"):
            raise ValueError(f"--{name} is {getattr(options, name)}; allowed is 1 or more")
    generator = torch.Generator().manual_seed(options.seed)
    if options.data is None:
        if options.shape is None:
            raise ValueError("give --data, or for noise --shape, such as 3,32,32")
        shape = tuple(int(side) for side in _numbers(options.shape))
        count = max(options.samples, options.attacks + 1)
        return torch.rand(count, *shape, generator=generator), "uniform noise"
    directory = Path(options.data).is_dir()
    if directory and options.size is None:
        raise ValueError("--data is a directory, which needs --size: pixels of a side, such as 32")
    name, root = ("folder", options.data) if directory else (options.data, options.root)
    sizes = {"size": options.size, "channels": options.channels}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    test = load_dataset(name, root, **sizes).test
    order = torch.randperm(len(test.values), generator=generator)
    values = test.values[order[: 50 * max(options.samples, options.attacks)]]
    return values.float() / (255 if values.dtype == torch.uint8 else 1), options.data


def _columns(options: Namespace, shape: tuple[int, ...]) -> Tensor | None:
    if options.window is not None:
        return image_window(shape, options.window)
    if len(shape) != 3 or math.prod(shape) <= 2 * MOVED:
        return None
    side = int((MOVED / shape[0]) ** 0.5)
    return image_window(shape, min(side, *shape[1:]))


def _note(report: Report, options: Namespace, module: nn.Module, near: Tensor, name: str) -> None:
    try:
        affine = "yes" if linearize(module, near).is_affine() else "no: slopes are of a tangent"
    except (NotImplementedError, RuntimeError):
        affine = "unknown: second derivatives are missing"
    values = {
        "network": options.factory,
        "weights": options.weights or "as the factory makes them",
        "parameters": sum(p.numel() for p in module.parameters()),
        "data": f"{len(near)} samples of {name}, {tuple(near.shape[1:])}",
        "affine near the samples": affine,
    }
    report.numbers("network", values)


def _stages(report: Report, module: nn.Module, near: Tensor, columns: Tensor | None) -> None:
    found = measure_stages(module, near, columns)
    moved = near[0].numel() if columns is None else len(columns)
    part = "all" if columns is None else f"the {moved} in the middle"
    note = f"medians over {len(near)} samples; {part} of {near[0].numel()} entries moved"
    report.table("stages", [_stage_row(one) for one in found], f"{note.capitalize()}.")
    report.figure("stages", stages_figure(found, note), "Units, singular values and condition")
    report.figure("decay", decay_figure(found, note), "Singular values at some stages")


def _stage_row(one: StageSpectra) -> dict[str, object]:
    return {
        "stage": str(one.stage),
        "units": one.stage.size,
        "on": float(np.median(one.active)),
        "singular values that are not zero": one.median_of(lambda s: s.count),
        "largest": one.median_of(lambda s: s.largest),
        "smallest that is not zero": one.median_of(lambda s: s.smallest),
        "condition": one.median_of(lambda s: s.condition),
    }
