"""What samples to be asked about are: named, of known number, read by batches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from iresflow.errors import DataError, few

__all__ = ["Event", "Queries", "Query", "class_numbers"]


@final
@dataclass(frozen=True)
class Event:
    """What a model takes.

    Arguments:
        shape: ``(C, H, W)`` of images, ``(D,)`` of vectors.
        levels: Grey levels of images; ``None`` for vectors.
        context_dim: Dimension of the context: columns, or classes; 0 for none.
    """

    shape: tuple[int, ...]
    levels: int | None
    context_dim: int


@final
@dataclass(frozen=True, eq=False)
class Query:
    """Some samples, as a model takes them.

    Attributes:
        rows: Which ones they are, of all.
        values: Integer images ``(B, C, H, W)``, or vectors float32 ``(B, D)``.
        labels: Class numbers int64 ``(B,)``, contexts float32 ``(B, context_dim)``, or ``None``.
        errors: What could not be read, each as one line, and is left out.
    """

    rows: Sequence[int]
    values: Tensor
    labels: Tensor | None
    errors: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


class Queries(ABC):
    """Samples in files.

    Attributes:
        title: What `names` are: ``file`` or ``row``.
        names: Of the N samples: paths, or numbers from 0.
    """

    title: str
    names: Sequence[str] | range

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.names)

    @abstractmethod
    def read(self, rows: range) -> Query:
        """Some samples.

        Raises:
            DataError: a value that the model can't take.
        """


def class_numbers(names: Sequence[str], classes: Sequence[str], count: int, where: str) -> Tensor:
    """Class numbers int64 ``(N,)`` of N names, by the names of the classes or by number.

    Arguments:
        names: Of each sample's class.
        classes: In the order of their numbers; empty where they are not known.
        count: How many classes there are.
        where: What the names are of, for the error.

    Raises:
        DataError: a name is none of them.
    """
    known = {name: number for number, name in enumerate(classes or map(str, range(count)))}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        told = "" if classes else ": the model does not know how its classes were called"
        raise DataError(
            f"{where} has the classes {few(unknown)}; the model has {few(list(known), 10)}{told}"
        )
    return torch.tensor([known[name] for name in names], dtype=torch.int64)
