"""What a data set is: three splits of one tensor type, with what is known about them."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iresflow.data.fingerprint import Fingerprint

__all__ = [
    "Dataset",
    "Scaling",
    "Split",
    "resolve_root",
    "unknown_name",
]


@dataclass(frozen=True)
class Scaling:
    """How contexts are standardised: ``(c - mean) / deviation``.

    Arguments:
        mean: Of each of the C columns.
        deviation: The standard deviation of each.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, contexts: np.ndarray) -> "Scaling":
        """The one that brings contexts float64 ``(N, C)`` to mean 0 and deviation 1."""
        return cls(tuple(contexts.mean(0).tolist()), tuple(contexts.std(0).tolist()))

    def __call__(self, contexts: np.ndarray) -> Tensor:
        """Contexts float64 ``(N, C)``, standardised, as float32."""
        if contexts.shape[1:] != (len(self.mean),):
            raise ValueError(
                f"contexts of shape {contexts.shape} for a scaling of {len(self.mean)} columns"
            )
        scaled = (contexts - np.array(self.mean)) / np.array(self.deviation)
        return torch.from_numpy(scaled.astype(np.float32))

    def undo(self, scaled: Tensor) -> np.ndarray:
        """The contexts float64 ``(N, C)`` that were standardised, up to rounding."""
        return scaled.double().numpy() * np.array(self.deviation) + np.array(self.mean)


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Arguments:
        values: Images as uint8 of shape ``(N, C, H, W)``, or vectors as float32 of shape
            ``(N, D)``; at least one.
        labels: Class numbers as int64 of shape ``(N,)``, or ``None`` where there are no classes.
        contexts: What the density is conditional on, as float32 of shape ``(N, C)`` with C at
            least 1, standardised; or ``None``.
        known: The contexts as the data have them, float64 ``(N, C)``; or ``None``.

    Raises:
        ValueError: If a type or a shape is another, or the two lengths differ.
    """

    values: Tensor
    labels: Tensor | None = None
    contexts: Tensor | None = None
    known: np.ndarray | None = None

    def __post_init__(self) -> None:
        kind = (self.values.dtype, self.values.dim())
        if kind not in {(torch.uint8, 4), (torch.float32, 2)}:
            raise ValueError(
                f"values are {kind[0]} of shape {tuple(self.values.shape)}; allowed are images as "
                "torch.uint8 (N, C, H, W) and vectors as torch.float32 (N, D)"
            )
        if self.values.numel() == 0:
            raise ValueError(f"values of shape {tuple(self.values.shape)} are empty")
        known = self.contexts
        if known is not None and (
            known.dtype != torch.float32 or known.dim() != 2 or len(known) != len(self.values)
        ):
            raise ValueError(
                f"contexts are {known.dtype} of shape {tuple(known.shape)}; values of shape "
                f"{tuple(self.values.shape)} need torch.float32 ({len(self.values)}, C)"
            )
        if self.labels is None:
            return
        if self.labels.dtype != torch.int64 or self.labels.shape != self.values.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; values of "
                f"shape {tuple(self.values.shape)} need torch.int64 ({len(self.values)},)"
            )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of the same kind, with what is needed to model and to report them.

    Arguments:
        name: The name it was loaded by.
        train: What the model is fitted to.
        validation: What decisions during training are made on.
        test: What is reported.
        levels: Number of values a pixel can take, ``0 .. levels - 1``; ``None`` for vectors.
        classes: Name of each class, in the order of the labels; empty without labels.
        columns: Name of each dimension of vectors where they are known, else empty.
        offset: What was subtracted from each dimension of vectors before they became float32;
            empty for nothing.
        contexts: Name of each column of the splits' contexts; empty where they have none.
        scaling: How those were standardised, or ``None``.
        fingerprint: What tells the samples from others; ``None`` where they are drawn from a
            seed, or not known.
        origin: How the three splits were made, for a reader; empty for those of a built-in set.

    Raises:
        ValueError: If the splits differ in event shape or type, or disagree with ``levels``,
            ``classes``, ``columns`` or ``contexts``.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    levels: int | None
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    offset: tuple[float, ...] = ()
    contexts: tuple[str, ...] = ()
    scaling: Scaling | None = None
    fingerprint: Fingerprint | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        images = self.train.values.dtype == torch.uint8
        if images != (self.levels is not None):
            raise ValueError(f"levels={self.levels}; images need a number and vectors None")
        if self.columns and (images or len(self.columns) != self.shape[0]):
            raise ValueError(
                f"{len(self.columns)} column names for events of shape {self.shape}; allowed is "
                "one per dimension of vectors, or none"
            )
        if self.offset and (images or len(self.offset) != self.shape[0]):
            raise ValueError(f"{len(self.offset)} offsets for events of shape {self.shape}")
        for part in ("train", "validation", "test"):
            self._check(part, getattr(self, part))

    def _check(self, part: str, split: Split) -> None:
        values, labels = split.values, split.labels
        if values.shape[1:] != self.shape or values.dtype != self.train.values.dtype:
            raise ValueError(
                f"{part} holds {values.dtype} events of shape {tuple(values.shape[1:])}, but "
                f"train {self.train.values.dtype} events of shape {self.shape}"
            )
        width = 0 if split.contexts is None else split.contexts.shape[1]
        if width != len(self.contexts):
            raise ValueError(
                f"{part} has contexts of {width} columns; allowed are those named: {self.contexts}"
            )
        if self.levels is not None and int(values.max()) >= self.levels:
            raise ValueError(
                f"{part} has pixel value {int(values.max())}; levels={self.levels} allows 0 to "
                f"{self.levels - 1}"
            )
        if (labels is None) != (not self.classes):
            raise ValueError(
                f"{part} has {'no ' if labels is None else ''}labels, but classes are "
                f"{self.classes}"
            )
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < len(
            self.classes
        ):
            raise ValueError(
                f"{part} has labels from {int(labels.min())} to {int(labels.max())}; "
                f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape: ``(C, H, W)`` of images, ``(D,)`` of vectors."""
        return tuple(self.train.values.shape[1:])


def resolve_root(root: str | Path | None) -> Path:
    """The data directory: ``root``, else the environment's ``IRESFLOW_DATA``, else ``./data``."""
    return Path(root or os.environ.get("IRESFLOW_DATA") or "data")


def unknown_name(name: str, names: tuple[str, ...]) -> ValueError:
    """The error for a name that is none of ``names``: it gives the nearest one, and all."""
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else "."
    return ValueError(f"unknown data set {name!r}{hint} Known are {', '.join(names)}")
