"""How many active units make a preimage bounded: figure 3 of the ICLR version.

The first layer of an MLP 3500-784-10 on MNIST. With 784 active units and more, the preimage is a
point; below, it may be bounded or not.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from experiments.relu.base import Report, Samples
from iresflow.relu.networks.parsing import parse_network
from iresflow.relu.preimages.classification import Kind, Preimage, classify_preimage
from iresflow.relu.preimages.extent import farthest_in_preimage

__all__ = ["count_kinds"]

COLORS = {Kind.UNBOUNDED: "tab:red", Kind.BOUNDED: "tab:blue", Kind.SINGLETON: "tab:green"}
BIN = 20

REACHES = 5
"""Bounded preimages whose reach is measured."""


def count_kinds(
    report: Report, module: nn.Sequential, data: Samples, *, samples: int, seed: int
) -> None:
    """Classifies the preimages of test images, and counts their kinds by active units.

    All images count in the distribution of active units. Classified are, of those that don't have
    many more active units than inputs, the ones nearest to the strip where kinds mix, and others
    at random.

    Arguments:
        report: Gets the tables ``kinds``, ``reach`` and ``strip`` and the figure ``kinds``.
        module: The network; its first layer is looked at.
        data: Images.
        samples: Images that are classified.
        seed: Of their choice.
    """
    layer = parse_network(module, data.test.shape[1:]).layers[0]
    flat = data.test.flatten(1).double()
    outputs = torch.cat([layer(part) for part in flat.split(500)])
    active = (outputs > 0).sum(1).numpy()
    size = layer.affine.in_size
    chosen = _choose(active, size, samples, seed)
    rows: list[dict[str, object]] = []
    reaches: list[dict[str, object]] = []
    for index in tqdm(chosen, desc="kinds", unit="image", dynamic_ncols=True, disable=None):
        found = classify_preimage(layer, outputs[index], member=flat[index])
        if found.kind is Kind.BOUNDED and len(reaches) < REACHES:
            target = flat[chosen[0]] - flat[index]
            reaches.append(_reach(int(active[index]), found, flat[index], target))
        rows.append(
            {
                "image": int(index),
                "active units": int(active[index]),
                "kind": str(found.kind),
                "dimension": found.dimension,
            }
        )
    counts = np.array([row["active units"] for row in rows])
    kinds = np.array([row["kind"] for row in rows])
    report.table("kinds", rows, "One image a row.")
    if reaches:
        report.table(
            "reach",
            reaches,
            "Bounded preimages with the fewest active units: how far one goes from the image "
            "towards another one. Changes of pixels, which lie in [0, 1] in images.",
        )
    strip = _strip(counts, kinds, active, size)
    report.numbers(
        "strip",
        strip,
        f"Active units of {layer.affine.out_size}, inputs {size}; strip: where "
        "bounded and unbounded preimages both occur.",
    )
    figure = _figure(counts, kinds, active, size, strip)
    report.figure("kinds", figure, "Kinds of preimages by the number of positive outputs")


def _reach(active: int, found: Preimage, own: Tensor, direction: Tensor) -> dict[str, object]:
    farthest = farthest_in_preimage(found, direction).point
    assert farthest is not None  # of a bounded preimage
    change = (farthest - own).abs()
    return {
        "active units": active,
        "dimension": found.dimension,
        "mean change of a pixel": float(change.mean()),
        "largest change": float(change.max()),
    }


def _choose(active: np.ndarray, size: int, samples: int, seed: int) -> np.ndarray:
    """Half of the images at random; for the other half, those below ``size`` evenly by rank."""
    generator = np.random.default_rng(seed)
    chosen = set(generator.permutation(len(active))[: samples // 2].tolist())
    below = np.flatnonzero(active < size)
    order = below[np.argsort(active[below], kind="stable")]
    wanted = np.linspace(0, len(order) - 1, min(len(order), samples - len(chosen))).astype(int)
    chosen |= set(order[wanted].tolist()) if len(order) else set()
    return np.array(sorted(chosen, key=lambda index: (active[index], index)))


def _strip(
    counts: np.ndarray, kinds: np.ndarray, active: np.ndarray, size: int
) -> dict[str, object]:
    bounded, unbounded = counts[kinds == "bounded"], counts[kinds == "unbounded"]
    singles = counts[kinds == "singleton"]
    return {
        "fewest active units of a bounded preimage": _number(bounded, np.min),
        "most active units of an unbounded preimage": _number(unbounded, np.max),
        "fewest active units of a singleton": _number(singles, np.min),
        "singletons below as many active units as inputs": int((singles < size).sum()),
        "uncertain": int((kinds == "uncertain").sum()),
        "bounded": len(bounded),
        "unbounded": len(unbounded),
        "singletons": len(singles),
        "active units, least": int(active.min()),
        "active units, median": float(np.median(active)),
        "active units, most": int(active.max()),
        "share of all images below as many active units as inputs": float((active < size).mean()),
    }


def _number(values: np.ndarray, reduce: object) -> int | None:
    return int(reduce(values)) if len(values) else None


def _figure(
    counts: np.ndarray,
    kinds: np.ndarray,
    active: np.ndarray,
    size: int,
    strip: dict[str, object],
) -> Figure:
    figure = Figure(figsize=(8, 6.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    # No bin holds numbers on both sides of the number of inputs, where the kind changes.
    edges = size + BIN * np.arange(
        (int(active.min()) - size) // BIN, (int(active.max()) - size) // BIN + 2
    )
    shown = [kind for kind in COLORS if (kinds == kind).any()]
    top.hist(
        [counts[kinds == kind] for kind in shown],
        edges,
        stacked=True,
        color=[COLORS[kind] for kind in shown],
        label=[f"{kind}: {(kinds == kind).sum()}" for kind in shown],
    )
    first = strip["fewest active units of a bounded preimage"]
    last = strip["most active units of an unbounded preimage"]
    if first is not None and last is not None:
        left, right = sorted((float(first), float(last)))
        what = "both occur" if first <= last else "neither occurs"
        label = f"{what}: {left:.0f} to {right:.0f}"
        top.axvspan(left, right, fc="0.85", ec="none", label=label, zorder=0)
        for end in (left, right):  # seen where bars hide the strip
            top.axvline(end, color="black", linewidth=1, linestyle=":")
    top.axvline(size, color="black", linewidth=1, linestyle="--", label=f"{size} inputs")
    top.set_ylabel(f"images whose preimage\nis classified, in bins of {BIN}")
    figure.legend(fontsize=9, loc="outside upper center", ncols=3)
    bottom.hist(active, edges, color="0.6")
    bottom.axvline(size, color="black", linewidth=1, linestyle="--")
    bottom.set_ylabel("all test images")
    bottom.set_xlabel("positive outputs of the first layer")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    top.set_title("Kind of the preimage by the number of positive outputs", fontsize=11)
    return figure
