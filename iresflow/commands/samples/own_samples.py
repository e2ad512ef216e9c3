"""Samples of a person's own, as options name them, for a trained model."""

from jsonargparse import Namespace

from iresflow.data.queries import Event, Queries, open_queries
from iresflow.data.reading import Reading
from iresflow.models import Flow, ImageFlow

__all__ = ["event_of", "open_samples"]


def event_of(model: Flow) -> Event:
    """What a model takes."""
    levels = model.levels if isinstance(model, ImageFlow) else None
    return Event(model.shape, levels, model.context_dim)


def open_samples(path: str, options: Namespace, model: Flow, reading: Reading) -> Queries:
    """The samples of a file or directory.

    Arguments:
        path: Where they are.
        options: With ``label`` and ``resize``.
        model: That will be asked about them.
        reading: How its training data were read.

    Raises:
        ValueError: an option that the model has no use for.
        DataError: the data can't be read, or are not what the model takes.
    """
    if options.label is not None:
        if model.context_dim == 0 or reading.contexts:
            raise ValueError("--label is for models that are conditional on a class")
        if not 0 <= options.label < model.context_dim:
            raise ValueError(f"--label must be one of 0 .. {model.context_dim - 1}")
    if options.resize:
        if not isinstance(model, ImageFlow):
            raise ValueError("--resize is for images; this model is of vectors")
        reading = Reading(classes=reading.classes, bits=reading.bits, resize=True)
    return open_queries(path, event_of(model), reading, options.label)
