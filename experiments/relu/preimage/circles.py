"""Two circles and three neurons: prediction, preimages and condition over the plane.

Figure 3.1 of the thesis.
"""

import copy
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn
from tqdm import tqdm

from experiments.relu.base import Report
from experiments.relu.networks import mlp
from experiments.relu.training import Training, train
from iresflow.relu.networks.parsing import parse_network
from iresflow.relu.preimages.classification import Kind, classify_preimage
from iresflow.relu.preimages.omnidirectional import is_omnidirectional
from iresflow.relu.ranks import singular_values
from iresflow.threads import threads_for
from iresflow.training.objectives.classification import CrossEntropy, accuracy

__all__ = ["draw_circles", "two_circles"]

KINDS = (Kind.UNBOUNDED, Kind.BOUNDED, Kind.SINGLETON)
COLORS = ("tab:red", "tab:blue", "0.85")
EXTENT = 1.6
SMALL = 1e4
"""Floating-point operations of the largest product, about: a batch through three neurons."""

ATTEMPTS = 20
"""Networks of three neurons that are trained; some get stuck."""


def two_circles(count: int, seed: int, noise: float = 0.08) -> tuple[Tensor, Tensor]:
    """Points ``(count, 2)`` on circles of radius 1/2 and 1, and which circle each is on."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    angle = 2 * torch.pi * torch.rand(count, generator=stream)
    points = torch.stack([angle.cos(), angle.sin()], 1) * (0.5 + 0.5 * labels)[:, None]
    return points + noise * torch.randn(count, 2, generator=stream), labels


def draw_circles(report: Report, resolution: int, seed: int) -> None:
    """Trains the network, classifies the preimage at each point of a grid, and draws both.

    Arguments:
        report: Gets the table ``circles`` and the figure ``circles``.
        resolution: Points of the grid along each side.
        seed: Of data and weights.
    """
    points, labels = two_circles(1000, seed)
    points = points.float()
    with threads_for(SMALL):
        before, after = _networks(points, labels, seed)
        maps = {
            "before training": _map(before, resolution, "circles: before training"),
            "trained": _map(after, resolution, "circles: trained"),
        }
    report.table(
        "circles",
        [row for name, plane in maps.items() for row in plane.rows(name)],
        f"Two circles, three neurons, accuracy {accuracy(after, points, labels):.3f}: the square "
        f"of side {2 * EXTENT:g}, {resolution} x {resolution} points. Without an active neuron "
        "there is no singular value, and the condition stands as 0.",
    )
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    for part, (name, plane) in zip(figure.subfigures(2, 1), maps.items(), strict=True):
        plane.draw(part, name, points, labels)
    report.figure("circles", figure, "Two circles: prediction, preimage and condition")


@final
@dataclass(frozen=True, eq=False)
class _Map:
    """What was found at each point of the grid, ``(N,)`` each, row by row."""

    prediction: np.ndarray
    active: np.ndarray
    kinds: np.ndarray
    condition: np.ndarray
    omnidirectional: bool

    def rows(self, name: str) -> list[dict[str, object]]:
        rows = []
        for number in np.unique(self.active):
            for kind in np.unique(self.kinds[self.active == number]):
                at = (self.active == number) & (self.kinds == kind)
                rows.append(
                    {
                        "network": name,
                        "rows omnidirectional": self.omnidirectional,
                        "active neurons": int(number),
                        "kind": str(kind),
                        "share of the plane": float(at.mean()),
                        "smallest condition": float(self.condition[at].min()),
                        "largest condition": float(self.condition[at].max()),
                    }
                )
        return rows

    def draw(self, figure: SubFigure, name: str, points: Tensor, labels: Tensor) -> None:
        left, middle, right = figure.subplots(1, 3)
        side = round(len(self.kinds) ** 0.5)
        extent = (-EXTENT, EXTENT, -EXTENT, EXTENT)
        shown = {"origin": "lower", "extent": extent, "interpolation": "nearest"}
        square = self.prediction.reshape(side, side)
        image = left.imshow(square, cmap="coolwarm", vmin=0, vmax=1, **shown)
        few, outer = points[:300].numpy(), labels[:300].numpy() == 1
        # By shape, as points in the colours of the map would vanish where they are right.
        left.scatter(*few[~outer].T, marker="o", s=9, c="white", ec="black", lw=0.6, label="inner")
        left.scatter(*few[outer].T, marker="x", s=12, c="black", lw=0.8, label="outer")
        left.legend(fontsize=7, loc="lower right", framealpha=0.9)
        left.set_xlim(-EXTENT, EXTENT)
        left.set_ylim(-EXTENT, EXTENT)
        figure.colorbar(image, shrink=0.8, ax=left, label="probability of the outer circle")
        left.set_title(f"Prediction, {name}", fontsize=10)
        numbers = np.select([self.kinds == kind for kind in KINDS], range(len(KINDS)), np.nan)
        image = middle.imshow(
            numbers.reshape(side, side),
            cmap=ListedColormap(COLORS),
            norm=BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3),
            **shown,
        )
        bar = figure.colorbar(image, shrink=0.8, ax=middle, ticks=range(len(KINDS)))
        bar.ax.set_yticklabels([str(kind) for kind in KINDS])
        middle.set_title("Preimage of the first layer's output", fontsize=10)
        image = right.imshow(self.condition.reshape(side, side), cmap="viridis", vmin=0, **shown)
        figure.colorbar(image, shrink=0.8, ax=right, label="condition (0: no active neuron)")
        right.set_title("Condition of the first layer", fontsize=10)


def _map(module: nn.Sequential, resolution: int, title: str) -> _Map:
    axis = np.linspace(-EXTENT, EXTENT, resolution)
    grid = torch.from_numpy(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    layer = parse_network(module).layers[0]
    weight = torch.from_numpy(layer.affine.dense())
    kinds, conditions = [], []
    for x in tqdm(grid, desc=title, unit="point", dynamic_ncols=True, disable=None):
        kinds.append(str(classify_preimage(layer, layer(x[None])[0], member=x).kind))
        slopes = layer.slopes(layer.affine(x[None]))
        conditions.append(singular_values(slopes.mT * weight).condition)
    with torch.no_grad():
        prediction = module(grid.float()).softmax(1)[:, 1].numpy()
    return _Map(
        prediction,
        (layer.affine(grid) > 0).sum(1).numpy(),
        np.array(kinds),
        np.nan_to_num(np.array(conditions), nan=0.0),
        bool(is_omnidirectional(layer.affine.dense())),
    )


def _networks(points: Tensor, labels: Tensor, seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    """One that was trained well, and the same before, whose rows leave a half-space free."""
    best: tuple[float, nn.Sequential, nn.Sequential] | None = None
    for attempt in range(ATTEMPTS):
        torch.manual_seed(seed * ATTEMPTS + attempt)
        module = mlp((2, 3, 2))
        before = copy.deepcopy(module)
        if is_omnidirectional(parse_network(before).layers[0].affine.dense()):
            continue
        training = Training(epochs=40, batch_size=50, learning_rate=0.02, seed=seed)
        train(module, points, labels, CrossEntropy(), training, title="circles: training")
        score = accuracy(module, points, labels)
        if best is None or score > best[0]:
            best = score, before, module
        if score > 0.97:
            break
    assert best is not None, "one in four random networks is omnidirectional"
    return best[1], best[2]
