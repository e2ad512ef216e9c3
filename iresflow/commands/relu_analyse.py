"""``iresflow relu analyse``: how invertible is one's own network near one's own data?"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from iresflow.commands.arguments import new_parser, parse
from iresflow.commands.own_networks import load_network, with_standardised_inputs
from iresflow.commands.relu_figures import attacks_figure, decay_figure, stages_figure
from iresflow.commands.report import Report
from iresflow.data import load_dataset
from iresflow.errors import LinearProgramError, UnsupportedNetworkError
from iresflow.relu.analysis import (
    StageSpectra,
    layers_on_polytope,
    measure_stages,
    parse_first_layers,
)
from iresflow.relu.networks.linearize import linearize
from iresflow.relu.networks.network import Layer, Network
from iresflow.relu.preimages.attack import Nearest, invariance_attack
from iresflow.relu.preimages.classification import classify_preimage
from iresflow.relu.stability.local_map import image_window
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
        _preimages(report, network, near, options)
        _attacks(report, module, network, samples, options)
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
    edges = [(s.positive[0], s.positive[-1]) for s in one.spectra if s.count] or [(math.nan,) * 2]
    return {
        "stage": str(one.stage),
        "units": one.stage.size,
        "on": float(np.median(one.active)),
        "singular values that are not zero": float(np.median([s.count for s in one.spectra])),
        "largest": float(np.median([float(large) for large, _ in edges])),
        "smallest that is not zero": float(np.median([float(small) for _, small in edges])),
        "condition": float(np.median([s.condition for s in one.spectra])),
    }


def _layers(network: Network, x: Tensor, options: Namespace) -> Iterator[tuple[int, Layer]]:
    layers = layers_on_polytope(network, x, int(options.entries))
    for depth, layer in zip(range(1, options.depth + 1), layers, strict=False):
        if layer.affine.in_size * layer.affine.out_size <= options.entries:
            yield depth, layer


def _preimages(report: Report, network: Network, near: Tensor, options: Namespace) -> None:
    rows: list[dict[str, object]] = []
    for index, x in enumerate(near):
        flat = network.flatten(x[None])[0]
        outputs = [output[0] for _, output in network.activations(flat[None])]
        for depth, layer in _layers(network, x, options):
            y = layer(flat[None])[0]
            on = sum(1 for value in outputs[depth - 1].tolist() if value)
            row = {"sample": index, "layers": depth, "last": layer.name}
            row |= {"inputs": len(flat), "units on": on}
            try:
                found = classify_preimage(layer, y, member=flat)
                row |= {"kind": str(found.kind), "dimension": found.dimension}
                row["why"] = found.reason
            except LinearProgramError as error:
                row |= {"kind": "not decided", "dimension": None, "why": str(error)}
            rows.append(row)
    if rows:
        report.table(
            "preimages",
            rows,
            "Which inputs the first layers map to the same output as a sample: of one layer all, "
            "of more those on whose way the same units are on as on the sample's.",
        )
    else:
        first = network.layers[0].affine
        size = f"{first.out_size} x {first.in_size}"
        report.numbers("preimages", {"not decided": f"a matrix of {size} is above --entries"})


def _attacks(
    report: Report, module: nn.Module, network: Network, samples: Tensor, options: Namespace
) -> None:
    inside = (samples.flatten(1).amin(1) >= 0) & (samples.flatten(1).amax(1) <= 1)
    images = samples[inside]
    rows: list[dict[str, object]] = []
    pictures = []
    for index in range(min(options.attacks, len(images) - 1)):
        x, target = images[index], images[-1 - index]
        line = [("sample", x.flatten().numpy()), ("target", target.flatten().numpy())]
        for depth, layer in _layers(network, x, options):
            row: dict[str, object] = {"sample": index, "layers": depth}
            try:
                attack = invariance_attack(layer, x.double(), target.double(), likeness=Nearest())
            except LinearProgramError as error:
                rows.append(row | dict.fromkeys(COLUMNS) | {"note": str(error)})
                continue
            found = attack.x.view(1, *x.shape).to(x.dtype)
            rows.append(row | _compare(module, x[None], found, target[None]))
            words = f"same after {depth} layer" + "s" * (depth > 1)
            line.append((words, attack.x.numpy()))
        pictures.append(line)
    if not rows:
        return
    report.table(
        "attacks",
        rows,
        "Inputs in [0, 1] that the first layers can't tell from a sample, as near as possible to "
        "another one. Classes: the largest output of the whole network.",
    )
    if samples.dim() == 4 and samples.shape[1] in (1, 3):
        title = "Images that the first layers can't tell from the sample of their row"
        report.figure("attacks", attacks_figure(pictures, tuple(samples.shape[1:]), title), title)


COLUMNS = ("moved by", "moved towards the target", "change of the output", "classes", "note")


def _compare(module: nn.Module, x: Tensor, found: Tensor, target: Tensor) -> dict[str, object]:
    with torch.no_grad():
        before, after = module(x).flatten(), module(found).flatten()
    way = float((target - x).abs().sum())
    return {
        "moved by": float((found - x).norm()),
        "moved towards the target": 1 - float((target - found).abs().sum()) / way if way else 0.0,
        "change of the output": float((after - before).norm() / before.norm()),
        "classes": f"{int(before.argmax())} and {int(after.argmax())}",
        "note": "",
    }
