"""The pictures of a model that are drawn at each validation."""

import torch

from iresflow.errors import InversionError
from iresflow.models import Flow, ImageFlow, InvertibleClassifier
from iresflow.models.classifiers.read_outs import SimplifiedReadOut
from iresflow.training.evaluation.reconstruction import reconstruct
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Album
from iresflow.training.objectives.contexts import context_for, context_of

__all__ = ["draw_classifier", "draw_flow"]

GRID = 36
"""Images in a sample grid."""

COLUMNS = 8
"""Images of a classifier that are drawn."""

POINTS = 2000
"""Points in a scatter plot."""


def draw_flow(flow: Flow, split: Samples, album: Album) -> None:
    """Draws samples, and reconstructions of held-out images.

    An inverse that fails is noted, not raised: it must not end the training of a model whose
    next validation may find it well again.

    Arguments:
        flow: In eval mode.
        split: Samples that were held out, with their labels.
        album: Gets the pictures.
    """
    try:
        if isinstance(flow, ImageFlow):
            _draw_images(flow, split, album)
        elif len(flow.shape) == 1:
            from iresflow.plots import scatter_figure  # of matplotlib, slow to import

            points = flow.sample(POINTS, _contexts(flow, split, POINTS), generator=_stream(flow))
            album.figure("samples", scatter_figure(points.cpu().numpy()))
    except InversionError as error:
        album.write({"inversion_failed": str(error)})


def _draw_images(flow: ImageFlow, split: Samples, album: Album) -> None:
    x = flow.sample(GRID, _contexts(flow, split, GRID), generator=_stream(flow))
    album.grid("samples", x)
    if flow.given is not None:
        album.grid("given", flow.given.picture(_in_turn(split, GRID).values))
    back = reconstruct(flow, split, count=8)
    pairs = torch.cat([back.originals, back.values])
    album.grid("reconstructions", pairs, columns=len(back.values))
    album.write({"validation/reconstruction_error": back.largest_error})


def _contexts(flow: Flow, split: Samples, count: int) -> torch.Tensor | None:
    """All classes in turn, or the contexts of the split in turn."""
    labels = split.labels
    if isinstance(flow, ImageFlow) and flow.given is not None:
        return context_for(flow, _in_turn(split, count))
    if flow.context_dim == 0 or labels is None:
        return None
    if labels.ndim == 1 and not labels.is_floating_point():
        classes = torch.arange(count) % flow.context_dim
        return context_of(classes, flow.context_dim, next(flow.parameters()))
    return context_for(flow, _in_turn(split, count))


def _in_turn(split: Samples, count: int) -> Batch:
    """So many samples of a split, from the first on, and again from the first after the last."""
    return Batch.of(split, torch.arange(count, device=split.values.device) % len(split))


def _stream(flow: Flow) -> torch.Generator:
    return torch.Generator(next(flow.parameters()).device).manual_seed(0)


@torch.no_grad()
def draw_classifier(net: InvertibleClassifier, split: Samples, album: Album) -> None:
    """Draws held-out images beside their reconstructions, and metamers where there are any.

    The third row has the logits of the images above it and the nuisance of their left neighbours.

    Arguments:
        net: In eval mode.
        split: Samples that were held out, with their labels.
        album: Gets the pictures.
    """
    if len(net.shape) != 3 or not net.limited:
        return
    values = split.values[:COLUMNS].to(next(net.parameters()).device)
    images = values if values.is_floating_point() else net.prepare(values)
    try:
        back = net.invert(net.transform(images))
        error = float((back.value - images).abs().max())
        rows, name = [images, back.value], "reconstructions"
        if isinstance(net.read_out, SimplifiedReadOut):
            found = net.metamer(images, images.roll(1, 0), clip=True)
            rows, name = [*rows, found.images], "metamers"
        album.grid(name, torch.cat(rows).clamp(0, 1), columns=len(images))
        album.write({"validation/reconstruction_error": error})
    except InversionError as failure:
        album.write({"inversion_failed": str(failure)})
