"""What the samples of ``iresflow sample`` are conditional on."""

from typing import final

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from iresflow.data.reading import Reading
from iresflow.models import Flow
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.contexts import asked_of, context_of
from iresflow.training.runs.known_data import load_data

__all__ = ["Conditions"]


@final
class Conditions:
    """Classes in turn, one class, or contexts of test data in turn.

    Arguments:
        model: That is sampled.
        options: Of the command line.
        reading: How the model's data were read.

    Raises:
        ValueError: a label that is no class of the model, or for a model without classes.
    """

    def __init__(self, model: Flow, options: Namespace, reading: Reading) -> None:
        self._like, self._dim = next(model.parameters()), model.context_dim
        self._label, self._split = options.label, None
        if options.label is not None:
            _require_class(options.label, model, reading)
        if reading.contexts:
            self._split = load_data(options.run, root=options.root).test

    def of(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class numbers ``(N,)`` and contexts of the samples of some numbers ``(N,)``."""
        labels = numbers % max(1, self._dim)
        if self._label is not None:
            labels = torch.full_like(numbers, self._label)
        given: Tensor | None = labels
        if self._split is not None:
            given = Batch.of(asked_of(self._split), numbers % len(self._split)).labels
        return labels, context_of(given, self._dim, self._like)

    def known(self, numbers: Tensor) -> np.ndarray | None:
        """The contexts ``(N, C)`` of the samples of some numbers, as the data have them.

        None for classes, and where there are none.
        """
        if self._split is None or self._split.known is None:
            return None
        return self._split.known[(numbers % len(self._split)).numpy()]


def _require_class(label: int, model: Flow, reading: Reading) -> None:
    if reading.contexts:
        raise ValueError(f"--label is for classes; this model has {', '.join(reading.contexts)}")
    classes = model.context_dim if len(model.context_shape) == 1 else 0
    if classes == 0:
        raise ValueError("--label is for conditional models; this one has no classes")
    if not 0 <= label < classes:
        raise ValueError(f"--label must be a class of the model, 0 .. {classes - 1}, got {label}")
