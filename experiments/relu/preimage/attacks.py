"""Images that the first layer of a trained network can't tell apart.

Figures 1, 6 and 11 of the papers, by the linear program of appendix A7: an MLP of ten layers of
100 units, and the test images with the fewest active units in its first layer.
"""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from experiments.relu.base import Report, Samples
from iresflow.relu.networks.parsing import parse_network
from iresflow.relu.preimages.attack import Attack, InnerProduct, Nearest, invariance_attack

__all__ = ["attack_first_layer"]

LIKENESSES = {"inner product": InnerProduct(), "nearest": Nearest()}


def attack_first_layer(
    report: Report, module: nn.Sequential, data: Samples, *, originals: int, targets: int
) -> None:
    """Attacks a network from some images, towards targets of other classes each.

    Arguments:
        report: Gets the table ``attacks`` and the figure ``attacks``.
        module: The network.
        data: Images in [0, 1] with labels.
        originals: Number of images that are attacked: those with the fewest active units, no two
            of one class while there are classes left.
        targets: Number of targets for each, of other classes: the brightest of some images, as
            the paper's program rewards bright pixels.
    """
    layer = parse_network(module, data.test.shape[1:]).layers[0]
    _, labels = data.labels()
    flat = data.test.flatten(1).double()
    active = (layer(flat) > 0).sum(1)
    rows, pictures = [], []
    chosen = _fewest(active, labels, originals)
    total = len(chosen) * targets * len(LIKENESSES)
    bar = tqdm(total=total, desc="attacks", unit="program", dynamic_ncols=True, disable=None)
    with bar:
        for index in chosen:
            own = int(labels[index])
            line = [flat[index].numpy()]
            for step in range(1, targets + 1):
                goal = _target(flat, labels, own, step, len(data.classes))
                line.append(flat[goal].numpy())
                for name, likeness in LIKENESSES.items():
                    attack = invariance_attack(layer, flat[index], flat[goal], likeness=likeness)
                    line.append(attack.x.numpy())
                    rows.append(
                        {
                            "image": index,
                            "class": data.classes[own],
                            "target": data.classes[int(labels[goal])],
                            "active units": int(active[index]),
                            "program": name,
                            **_measure(module, data.test[index], flat[goal], attack, data.classes),
                        }
                    )
                    bar.update()
            pictures.append(line)
    report.table(
        "attacks",
        rows,
        "Images with identical activations of the first layer, by two programs. Class said: by "
        "the whole network.",
    )
    title = (
        f"To the {layer.affine.out_size} ReLU neurons of the first layer, each image under "
        "'inner product' and 'nearest' is the original of its row"
    )
    figure = _figure(pictures, data, title)
    report.figure("attacks", figure, "Originals, and images with the same activations")


def _fewest(active: Tensor, labels: Tensor, count: int) -> list[int]:
    chosen: list[int] = []
    seen: set[int] = set()
    for index in active.argsort(stable=True).tolist():
        if len(chosen) == count:
            break
        if int(labels[index]) not in seen:
            chosen.append(index)
            seen.add(int(labels[index]))
    return chosen


def _target(flat: Tensor, labels: Tensor, own: int, step: int, classes: int) -> int:
    """The brightest of 50 images of the class that lies ``step`` places (by threes) further on."""
    wanted = (own + 3 * step) % classes
    members = (labels == wanted).nonzero()[:50, 0]
    return int(members[flat[members].sum(1).argmax()])


def _measure(
    module: nn.Sequential, image: Tensor, target: Tensor, attack: Attack, classes: tuple[str, ...]
) -> dict[str, object]:
    found = attack.x
    with torch.no_grad():
        said = module(torch.stack([image, found.float().view_as(image)])).argmax(1).tolist()
    own = image.flatten().double()
    return {
        "largest difference of activations": attack.difference,
        "cosine to the target, before": float(F.cosine_similarity(own, target, dim=0)),
        "after": float(F.cosine_similarity(found, target, dim=0)),
        "mean change of a pixel": float((own - found).abs().mean()),
        "class said before": classes[said[0]],
        "class said after": classes[said[1]],
    }


def _figure(pictures: list[list[np.ndarray]], data: Samples, title: str) -> Figure:
    columns = len(pictures[0])
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(pictures) + 0.6), layout="constrained")
    grid = figure.subplots(len(pictures), columns, squeeze=False)
    period = 1 + len(LIKENESSES)
    heads = ["original", *["target", *LIKENESSES] * (columns // period)]
    for line, axes_row in zip(pictures, grid, strict=True):
        for picture, axes in zip(line, axes_row, strict=True):
            _show(axes, picture.reshape(data.test.shape[1:]))
    for head, axes in zip(heads, grid[0], strict=True):
        axes.set_title(head, fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
