"""``iresflow sample`` of an invertible classifier: metamers, or test images sent back."""

from pathlib import Path

import torch
from jsonargparse import Namespace
from torch import Tensor

from iresflow.bijections import Accuracy
from iresflow.models import InvertibleClassifier
from iresflow.models.classifiers.read_outs import SimplifiedReadOut
from iresflow.pictures import save_grid
from iresflow.training.loop.batches import Batch
from iresflow.training.runs.known_data import load_data

__all__ = ["draw_from_classifier", "others"]

COLUMNS = 12
"""Images in a row."""


def draw_from_classifier(net: InvertibleClassifier, options: Namespace, out: Path) -> int:
    """Writes a picture of test images and of what the network makes of their latents.

    By default of metamers: images, below each a reference of another class, and below it what has
    the logits of the one and the nuisance of the other. With ``--reconstruct`` images above what
    comes back from their own latents, which needs no simplified read-out.

    Arguments:
        net: In eval mode.
        options: Of the verb.
        out: The file.

    Raises:
        ValueError: a network of vectors, a read-out without a nuisance, or options of flows.
    """
    _require_pictures(net, options, out)
    split = load_data(options.run, root=options.root).test
    samples = Batch.of(split, slice(min(options.n, len(split))))
    x = net.prepare(samples.values.to(next(net.parameters()).device))
    accuracy = None if options.tol is None else Accuracy(options.tol)
    if options.reconstruct:
        back = net.invert(net.transform(x), accuracy)
        rows = [x, back.value]
        print(
            f"largest pixel error  {float((back.value - x).abs().max()):.2e} of the range [0, 1]"
        )
        print(f"measured residual    {float(back.padded.residual.max()):.1e} of a latent at most")
    else:
        labels = torch.arange(len(x)) if samples.labels is None else samples.labels
        reference = x[others(labels).to(x.device)]
        found = net.metamer(x, reference)
        rows = [x, reference, found.images.clamp(0, 1)]
        print(f"same decision        {int(found.same_decision.sum())} of {len(x)} metamers")
        print(f"measured residual    {float(found.residual.max()):.1e} of a latent at most")
        print(
            f"pixel range          left by up to {float(found.outside.max()):.2f} (median "
            f"{float(found.outside.median()):.2f}); drawn clipped"
        )
    save_grid(_in_rows(rows), out, min(COLUMNS, len(x)))
    print(f"written              {out}")
    return 0


def others(labels: Tensor) -> Tensor:
    """For each sample the place ``(N,)`` of the next one of another class, around the end.

    Raises:
        ValueError: all are of one class.
    """
    count = len(labels)
    ahead = (torch.arange(count)[:, None] + torch.arange(count)[None]) % count
    differ = labels.cpu()[ahead] != labels.cpu()[:, None]
    if not bool(differ.any(1).all()):
        raise ValueError(f"all {count} images are of one class: a metamer needs two")
    return ahead.gather(1, differ.int().argmax(1, keepdim=True))[:, 0]


def _require_pictures(net: InvertibleClassifier, options: Namespace, out: Path) -> None:
    if len(net.shape) != 3:
        raise ValueError("pictures are of classifiers of images, and this one is of vectors")
    if options.interpolate or options.each or options.label is not None:
        raise ValueError(
            "--interpolate, --each and --label are for flows; a classifier has metamers, or "
            "reconstructions by --reconstruct"
        )
    if out.suffix != ".png":
        raise ValueError(f"--out of a classifier is a picture, .png, got {out}")
    if options.temperature != 1:
        raise ValueError("--temperature is of a flow's samples: a classifier has no density")
    if not options.reconstruct and not isinstance(net.read_out, SimplifiedReadOut):
        raise ValueError(
            "metamers need --model.read_out simplified in training: of this read-out the latent "
            "has no nuisance. --reconstruct draws test images above what comes back"
        )


def _in_rows(rows: list[Tensor]) -> Tensor:
    """Images in lines of all rows, each as wide as the picture, for a grid."""
    columns = min(COLUMNS, len(rows[0]))
    lines = []
    for first in range(0, len(rows[0]), columns):
        for row in rows:
            line = row[first : first + columns]
            lines += [line, line.new_zeros(columns - len(line), *line.shape[1:])]
    return torch.cat(lines)
