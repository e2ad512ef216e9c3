"""What the report on an ordinary network says of its first layers: preimages, and attacks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from iresflow.commands.networks.figures import attacks_figure
from iresflow.commands.report import Report
from iresflow.errors import LinearProgramError
from iresflow.relu.analysis import layers_on_polytope
from iresflow.relu.networks.network import Layer, Network
from iresflow.relu.preimages.attack import Nearest, invariance_attack
from iresflow.relu.preimages.classification import classify_preimage
from iresflow.relu.ranks import singular_values

__all__ = ["Limits", "report_attacks", "report_preimages"]

SMALL = 1024
"""Inputs at most for which linear programs are solved: minutes beyond."""

READABLE = 10**9
"""Entries at most, zeros included, of a matrix that is formed, sparse."""


@final
@dataclass(frozen=True)
class Limits:
    """How far the first layers are looked at.

    Attributes:
        depth: Layers at most.
        entries: Of a matrix of several layers at most.
    """

    depth: int
    entries: int

    def layers(self, network: Network, x: Tensor) -> Iterator[tuple[int, Layer]]:
        """Depth and layer, see `layers_on_polytope`."""
        layers = layers_on_polytope(network, x, self.entries)
        for depth, layer in zip(range(1, self.depth + 1), layers, strict=False):
            if layer.affine.in_size * layer.affine.out_size <= READABLE:
                yield depth, layer


def report_preimages(report: Report, network: Network, samples: Tensor, limits: Limits) -> None:
    """The table ``preimages``: which inputs the first layers map to the output of a sample.

    Arguments:
        report: Gets the table.
        network: The network, or the chain that it begins with.
        samples: Inputs ``(S, *in_shape)``.
        limits: How far to look.
    """
    rows: list[dict[str, object]] = []
    for index, x in enumerate(samples):
        flat = network.flatten(x[None])[0]
        outputs = [output[0] for _, output in network.activations(flat[None])]
        for depth, layer in limits.layers(network, x):
            on = int(outputs[depth - 1].count_nonzero())
            row = {"sample": index, "layers": depth, "last": layer.name}
            row |= {"inputs": len(flat), "units on": on}
            rows.append(row | _kind(layer, flat))
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
        report.numbers("preimages", {"not decided": f"a matrix of {size} is too large"})


def _kind(layer: Layer, x: Tensor) -> dict[str, object]:
    y = layer(x[None])[0]
    if len(x) > SMALL:
        # Too many for linear programs, but the active rows alone may tell.
        on = (y > 0).numpy() if layer.slope == 0 else slice(None)
        if singular_values(layer.affine.matrix()[on]).spans(len(x)) == "yes":
            why = "as many independent active rows as dimensions"
            return {"kind": "singleton", "dimension": 0, "why": why}
        why = f"more than {SMALL} inputs, and the active rows alone don't determine them"
        return {"kind": "not decided", "dimension": None, "why": why}
    try:
        found = classify_preimage(layer, y, member=x)
    except LinearProgramError as error:
        return {"kind": "not decided", "dimension": None, "why": str(error)}
    return {"kind": str(found.kind), "dimension": found.dimension, "why": found.reason}


def report_attacks(
    report: Report,
    module: nn.Module,
    network: Network,
    samples: Tensor,
    count: int,
    limits: Limits,
) -> None:
    """The table ``attacks`` and its figure: inputs that the first layers can't tell apart.

    Arguments:
        report: Gets both, where there is something to show.
        module: The whole network, whose outputs are compared.
        network: What was read of it.
        samples: Inputs ``(N, *in_shape)``, of which those in [0, 1] are used.
        count: Samples that are attacked; the targets are the last ones.
        limits: How far to look.
    """
    inside = (samples.flatten(1).amin(1) >= 0) & (samples.flatten(1).amax(1) <= 1)
    images = samples[inside & (network.in_size <= SMALL)]
    rows: list[dict[str, object]] = []
    pictures = []
    for index in range(min(count, len(images) - 1)):
        x, target = images[index], images[-1 - index]
        line = [("sample", x.flatten().numpy()), ("target", target.flatten().numpy())]
        for depth, layer in limits.layers(network, x):
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
