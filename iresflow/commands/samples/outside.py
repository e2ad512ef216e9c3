"""The samples of ``iresflow ood --outside``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jsonargparse import Namespace
from torch import Tensor

from iresflow.commands.samples.own_samples import event_of, open_samples
from iresflow.data import IMAGE_NAMES, OWN_DATA, VECTOR_NAMES
from iresflow.data.queries.named import named_samples
from iresflow.errors import DataError, few
from iresflow.models import Flow
from iresflow.training.objectives.contexts import context_of
from iresflow.training.runs.known_reading import reading_of

__all__ = ["Outside", "outside_of"]

NAMES = tuple(name for name in (*IMAGE_NAMES, *VECTOR_NAMES) if name not in OWN_DATA)


@final
@dataclass(frozen=True, eq=False)
class Outside:
    """Samples from elsewhere, as a model takes them.

    Attributes:
        values: ``(N, *shape)``.
        context: ``(N, context_dim)``, or None where the model has none or makes its own.
        names: Files, or rows.
        errors: What could not be read, one line each.
    """

    values: Tensor
    context: Tensor | None
    names: Sequence[str]
    errors: Sequence[str] = ()


def outside_of(options: Namespace, model: Flow, checkpoint: Path) -> Outside:
    """The first ``n`` samples of a name, a directory or a file.

    Raises:
        ValueError: it is none of these, or of another kind than the model's samples, or contexts
            are missing.
        DataError: it can't be read.
    """
    name, like = options.outside, next(model.parameters())
    if Path(name).exists():
        queries = open_samples(name, options, model, reading_of(checkpoint))
        query = queries.read(range(min(options.n, len(queries))))
        if len(query) == 0:
            raise DataError(f"no sample of {name} could be read: {few(query.errors)}")
        context = context_of(query.labels, model.context_dim, like)
        names = [str(queries.names[row]) for row in query.rows]
        return Outside(query.values, context, names, query.errors)
    if name not in NAMES:
        raise ValueError(f"--outside {name} is no path, and no data set of {', '.join(NAMES)}")
    values = named_samples(name, event_of(model), options.outside_root)[: options.n]
    labels = None if options.label is None else torch.full((len(values),), options.label)
    names = [str(row) for row in range(len(values))]
    return Outside(values, context_of(labels, model.context_dim, like), names)
